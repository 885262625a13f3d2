# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest

from blkd.daemon.daemon_config import (
    SYSTEM,
    DaemonConfig,
    DashboardConfig,
    MetricsConfig,
    read_config,
    user_directories,
)
from blkd.daemon.loopback import LoopbackAddress
from blkd.errors import ConfigError


def read(text):
    return read_config(text.encode(), "/etc/blkd/blkd.toml", SYSTEM)


def test_an_empty_file_is_a_daemon_of_the_system():
    assert read("") == DaemonConfig(
        state="/var/lib/blkd", run="/run/blkd", images=("/var/lib/blkd/images",)
    )


def test_paths_are_from_the_directory_of_the_file():
    config = read('state = "s"\nrun = "../r"\nimages = "i"\n')
    assert (config.state, config.images) == ("/etc/blkd/s", ("/etc/blkd/i",))
    assert config.socket == "/etc/blkd/../r/blkd.sock"


def test_everything_can_be_said():
    config = read(
        """
        images = ["/a", "/b"]
        devices = ["/dev/vg0/*"]
        taps = ["vm*"]
        socket-group = "kvm"
        read-group = "adm"
        change-group = "disk"
        sandbox = "off"
        user = "nobody"
        on-stop = "stop"
        nearly-full = "20G"

        [metrics]
        listen = "127.0.0.1:9750"

        [dashboard]
        listen = "[::1]:9751"
        """
    )
    assert config == DaemonConfig(
        state="/var/lib/blkd",
        run="/run/blkd",
        images=("/a", "/b"),
        devices=("/dev/vg0/*",),
        taps=("vm*",),
        socket_group="kvm",
        read_group="adm",
        change_group="disk",
        sandbox="off",
        user="nobody",
        on_stop="stop",
        nearly_full="20G",
        metrics=MetricsConfig(listen="127.0.0.1:9750"),
        dashboard=DashboardConfig(listen="[::1]:9751"),
    )
    assert config.metrics.address == LoopbackAddress("127.0.0.1", 9750)
    assert config.dashboard.address == LoopbackAddress("::1", 9751)


def test_a_dashboard_may_be_on_a_unix_socket():
    config = read('run = "/r"\n[dashboard]\nlisten = "unix"')
    assert config.dashboard.is_unix
    assert (config.dashboard.address, config.dashboard_socket) == (None, "/r/blkd-dashboard.sock")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        pytest.param('\nstate = "a', 2, "is no TOML", id="syntax"),
        pytest.param("\n\nsocket_group = 1", 3, "unknown field `socket_group`", id="unknown"),
        pytest.param("state = 1", 1, "Expected `str", id="type"),
        pytest.param('\nsandbox = "some"', 2, "Invalid enum value 'some'", id="choice"),
        pytest.param('\nimages = ["a", ""]', 2, "Expected `str` of length >= 1", id="empty"),
        pytest.param('\n\nrun = "/var/lib/blkd"', 3, "state and run are both", id="one-place"),
        pytest.param(f'run = "/{"x" * 84}"', 1, "sockets beneath allow 84", id="long"),
        pytest.param('devices = ["sda"]', 1, "is no absolute path", id="relative-device"),
        pytest.param('devices = ["/dev/../x"]', 1, "is no absolute path", id="device-outside"),
        pytest.param('devices = ["/proc/*"]', 1, "names no block devices", id="device-of-proc"),
        pytest.param(
            '[metrics]\nlisten = "10.0.0.1:9750"',
            2,
            "no address of the loopback",
            id="not-loopback",
        ),
        pytest.param('\nnearly-full = "100%"', 2, "no share of a file system", id="share"),
        pytest.param('nearly-full = "little"', 1, "neither a size", id="threshold"),
        pytest.param('[metrics]\nlisten = "0.0.0.0:1"', 2, "no address of the loopback", id="any"),
        pytest.param('[metrics]\nlisten = "localhost"', 2, "no address and port", id="no-port"),
        pytest.param(
            '[dashboard]\nlisten = "192.168.1.1:80"', 2, "no address of the loopback", id="page"
        ),
        pytest.param('[dashboard]\nlisten = "/run/x"', 2, "no address and port", id="path"),
        pytest.param("[metrics]\nport = 1", 2, "unknown field `port`", id="unknown-in-table"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, line, reason):
    with pytest.raises(ConfigError, match=re.escape(f"/etc/blkd/blkd.toml:{line}: ")) as refused:
        read(text)
    assert reason in str(refused.value)


def test_a_user_has_directories_of_its_own():
    found = user_directories({"XDG_RUNTIME_DIR": "/run/user/7", "XDG_DATA_HOME": "x"}, "/home/u", 7)
    assert (found.state, found.run) == ("/home/u/.local/state/blkd", "/run/user/7/blkd")
    assert found.images == "/home/u/.local/share/blkd/images"
    assert found.config == "/home/u/.config/blkd/blkd.toml"


def test_the_document_has_every_key():
    page = (Path(__file__).parents[2] / "docs" / "daemon.md").read_text()
    keys = re.findall(r"^\| `([a-z-]+)` \| ", page, re.MULTILINE)
    assert set(keys) >= {field.replace("_", "-") for field in DaemonConfig.__struct_fields__}
