# SPDX-License-Identifier: Apache-2.0
"""Settings of exports as the API and the records have them."""

from pathlib import PurePath

import pytest

from blkd.daemon.plain_settings import kept_settings, read_settings
from blkd.errors import ConfigError

RUN = PurePath("/run/blkd")


def test_plain_values_become_those_of_the_model():
    settings = {"image": "/x.img", "socket_mode": "0600", "cpus": [2, 3], "read_only": True}
    config = read_settings("blk", "web", settings, RUN)
    assert (config.name, config.image, config.socket_mode) == ("web", "/x.img", 0o600)
    assert (config.cpus, config.read_only) == ((2, 3), True)


@pytest.mark.parametrize(
    ("device", "settings", "sockets"),
    [
        pytest.param("blk", {"image": "/x"}, "/run/blkd/a.sock", id="disk"),
        pytest.param("net", {"tap": "t"}, "/run/blkd/a.sock", id="net"),
        pytest.param("vsock", {"cid": [3]}, ("/run/blkd/a.sock",), id="one guest"),
        pytest.param(
            "vsock", {"cid": [3, 4]}, ("/run/blkd/a-3.sock", "/run/blkd/a-4.sock"), id="two guests"
        ),
        pytest.param("blk", {"image": "/x", "socket": "/s"}, "/s", id="given"),
    ],
)
def test_sockets_lie_in_the_run_directory_unless_given(device, settings, sockets):
    assert read_settings(device, "a", settings, RUN).socket == sockets


@pytest.mark.parametrize(
    ("device", "settings", "found"),
    [
        pytest.param("blk", {}, "image", id="nothing"),
        pytest.param("blk", {"image": "/x", "speed": 1}, "speed", id="unknown"),
        pytest.param("blk", {"image": "/x", "cid": [3]}, "cid", id="another device's"),
        pytest.param("blk", {"image": "/x", "name": "b"}, "name", id="name"),
        pytest.param("blk", {"image": "/x", "control": "/c"}, "control", id="control"),
        pytest.param("net", {"tap_fd": [3]}, "tap_fd", id="descriptor"),
        pytest.param("blk", {"image": "/x", "queues": "2"}, "queues", id="text for a number"),
        pytest.param("blk", {"image": "/x", "queues": True}, "queues", id="truth for a number"),
        pytest.param("blk", {"image": "/x", "queue_size": 100}, "power of two", id="rule"),
        pytest.param("blk", {"image": "/x", "socket_mode": 432}, "socket_mode", id="mode"),
        pytest.param("blk", {"image": "/x", "socket_mode": "999"}, "octal", id="no mode"),
        pytest.param("blk", {"image": "/x\0y"}, "NUL", id="NUL"),
        pytest.param("vsock", {"cid": [2]}, "cid", id="the host's CID"),
        pytest.param("vsock", {"cid": ["3"]}, "cid", id="text for a CID"),
        pytest.param("vsock", {"cid": [3], "forward": "80:unix:/x"}, "list", id="no list"),
        pytest.param("vsock", {"cid": [3], "forward": [80]}, "text", id="no text"),
        pytest.param("vsock", {"cid": [3], "forward": ["80:10.0.0.1:1"]}, "host", id="far away"),
        pytest.param("vsock", {"cid": 3}, "cid", id="one CID"),
        pytest.param("vsock", {"cid": []}, "cid", id="no guest"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused(device, settings, found):
    with pytest.raises(ConfigError) as refused:
        read_settings(device, "a", settings, RUN)
    assert found in str(refused.value)


@pytest.mark.parametrize(
    ("device", "settings", "kept"),
    [
        pytest.param("blk", {"cache": "none", "image": "/x"}, {"image": "/x"}, id="default"),
        pytest.param(
            "blk",
            {"image": "/x", "socket_mode": "600", "cpus": [1]},
            {"image": "/x", "socket_mode": "0600", "cpus": [1]},
            id="one way to write it",
        ),
        pytest.param(
            "vsock",
            {"forward": ["80:unix:/x"], "cid": [3]},
            {"cid": [3], "forward": ["80:unix:/x"]},
            id="text",
        ),
    ],
)
def test_settings_are_kept_in_one_way(device, settings, kept):
    assert kept_settings(device, "a", settings) == kept
    assert kept_settings(device, "a", kept) == kept
