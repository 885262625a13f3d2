# SPDX-License-Identifier: Apache-2.0
"""What the units for systemd say."""

from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "packaging" / "systemd").glob("*.service"))


def settings(unit):
    """Each setting of a unit, a line each; a line that goes on is one."""
    lines = unit.read_text().replace("\\\n", " ").splitlines()
    return [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_unit_keeps_block_devices_away(unit):
    # ProtectClock= allows char-rtc, and what allows one device forbids all that are not named.
    narrow = {"DeviceAllow", "DevicePolicy", "PrivateDevices", "ProtectClock"}
    assert not narrow & {name for name, _ in settings(unit)}


def test_exports_outlive_the_daemon_and_each_other():
    of_daemon = dict(map(tuple, settings(UNITS[0].with_name("blkd.service"))))
    assert of_daemon["KillMode"] == "process"
    assert of_daemon["OOMPolicy"] == "continue"
    assert of_daemon["RuntimeDirectoryPreserve"] == "yes"
    assert "RestrictNamespaces" not in of_daemon  # each export has its own
