# SPDX-License-Identifier: Apache-2.0
"""The options of `blkd serve`, and the settings that they make."""

import pytest
from click.testing import CliRunner

from blkd import hosting
from blkd.cli.export_options import served_settings
from blkd.cli.group import blkd
from blkd.export.config import ExportConfig
from blkd.host import log, signals

WRITTEN = {
    "socket": ("s", "s"),
    "image_format": ("raw", "raw"),
    "name": ("root", "root"),
    "read_only": (None, True),
    "queues": ("2", 2),
    "queue_size": ("128", 128),
    "serial": ("17", "17"),
    "features_as": ("0.1", "0.1"),
    "cache": ("writeback", "writeback"),
    "logical_block_size": ("4096", 4096),
    "engine": ("uring", "uring"),
    "workers": ("3", 3),
    "cpus": ("2-3,0", (2, 3, 0)),
    "limit": ("bps=1K,iops=5", "iops=5,bps=1024"),
    "slow_us": ("5000", 5000),
    "poll_us": ("0", 0),
    "on_enospc": ("hold", "hold"),
    "on_error": ("hold:5", "hold:5"),
    "register_memory": (None, True),
    "incoming": (None, True),
    "discard": (None, False),
    "max_discard_segments": ("1", 1),
    "control": ("c", "c"),
    "socket_group": ("kvm", "kvm"),
    "socket_mode": ("666", 0o666),
    "control_group": ("0", "0"),
    "control_mode": ("0660", 0o660),
}
"""Of each setting, something else than its default: as it is written, and what that means."""


@pytest.fixture
def settings(monkeypatch):
    """Returns the settings that a command line comes to, or its result if there are none."""

    def settings(*arguments):
        served = []
        monkeypatch.setattr(hosting, "run", lambda config, _announce: served.append(config))
        monkeypatch.setattr(signals, "exit_now", lambda _status: None)
        monkeypatch.setattr(log, "configure", lambda **_: None)
        result = CliRunner().invoke(blkd, ["serve", "images/vm.img", *arguments])
        return served.pop() if served else result

    return settings


def test_without_options_each_setting_has_its_default(settings):
    assert settings("--socket", "s") == ExportConfig(image="images/vm.img", name="vm", socket="s")


@pytest.mark.parametrize(
    "setting", served_settings(ExportConfig), ids=lambda setting: setting.field
)
def test_an_option_makes_its_setting_and_no_other(setting, settings):
    text, value = WRITTEN[setting.field]
    words = [setting.flag] if text is None else [setting.flag, text]
    expected = {"image": "images/vm.img", "name": "vm", "socket": "s", setting.field: value}
    assert settings("--socket", "s", *words) == ExportConfig(**expected)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--queue-size", "200"], "'--queue-size': 200 is no power of two; take 128 or 256"),
        (["--serial", "x" * 21], "'--serial': 'xxxxxxxxxxxxxxxxxxxxx' has 21 characters"),
        (["--serial", "größe"], "'--serial': 'größe' has characters that are not ASCII"),
        (["--cpus", "-1"], "'--cpus': '-1' is no CPU or range of CPUs"),
        (["--cpus", "5-2"], "'--cpus': '5-2' is an empty range of CPUs"),
        (["--socket-mode", "9"], "'--socket-mode': '9' is no mode in octal"),
        (["--max-discard-seg", "257"], "'--max-discard-seg': 257 is not in the range 1<=x<=256"),
        (["--group", "gold"], "'--group': it is for exports of a daemon, which has the groups"),
        (["--weight", "3"], "'--weight': it is for exports of a daemon"),
        (["--logical-block-size", "1024"], "'--logical-block-size': '1024' is not one of"),
    ],
)
def test_a_wrong_value_is_wrong_usage_of_its_option(arguments, reason, settings):
    result = settings("--socket", "s", *arguments)
    assert result.exit_code == 2
    assert reason in result.stderr
