# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from blkd.export.config import ExportConfig, cpu_list
from blkd.upgrade.settings import SETTINGS_OF_0_1, settings_for_taker


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", ()), ("3", (3,)), ("2-5,8", (2, 3, 4, 5, 8)), ("1,0", (1, 0)), ("0-0", (0,))],
)
def test_a_list_of_cpus_keeps_its_order(text, cpus):
    assert cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "-1", "1-x", "5-2", "1 2", "²", "0-4000000000"])
def test_what_is_no_list_of_cpus_is_refused(text):
    with pytest.raises(ValueError, match="CPU"):
        cpu_list(text)


def test_an_older_version_is_told_of_no_setting_that_it_does_not_know():
    config = ExportConfig(image="a.img", name="a", image_format="raw", socket_group="kvm")
    settings = json.loads(settings_for_taker(config, "the guest's serial"))
    assert set(settings) == SETTINGS_OF_0_1
    assert settings["serial"] == "the guest's serial"
