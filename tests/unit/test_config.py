# SPDX-License-Identifier: Apache-2.0
"""The settings of an export, and what holds for each of them wherever it comes from."""

import json
from types import SimpleNamespace

import msgspec
import pytest

from blkd.errors import ConfigError, UpgradeError
from blkd.export.config import ExportConfig, cpu_list
from blkd.export.endpoint_config import octal_mode
from blkd.export.option import settings_of
from blkd.upgrade.settings import SETTINGS_OF_0_1, settings_for_taker, settings_from_giver

NO_OPTIONS = {"image"}
"""Settings that the command line takes as an argument."""


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", ()), ("3", (3,)), ("2-5,8", (2, 3, 4, 5, 8)), ("1,0", (1, 0)), ("0-0", (0,))],
)
def test_a_list_of_cpus_keeps_its_order(text, cpus):
    assert cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "-1", "1-x", "5-2", "1 2", "²", "0-4000000000"])
def test_what_is_no_list_of_cpus_is_refused(text):
    with pytest.raises(ConfigError, match="CPU"):
        cpu_list(text)


@pytest.mark.parametrize("text", ["", "66", "0o660", "0668", "00660", "u+rw", "٠٦٦٠"])
def test_what_is_no_mode_is_refused(text):
    with pytest.raises(ConfigError, match="octal"):
        octal_mode(text)


def test_each_setting_but_the_image_is_an_option():
    named = {setting.field for setting in settings_of(ExportConfig)}
    assert named == set(ExportConfig.__struct_fields__) - NO_OPTIONS


BROKEN_RULES = [
    pytest.param("queue_size", 200, "200 is no power of two; take 128 or 256", id="queue-size"),
    pytest.param("serial", "x" * 21, "has 21 characters", id="long-serial"),
    pytest.param("serial", "größe", "not ASCII", id="serial-of-other-letters"),
]


@pytest.mark.parametrize(("field", "value", "reason"), BROKEN_RULES)
def test_a_rule_holds_whoever_makes_the_settings(field, value, reason):
    settings = {"image": "a.img", "name": "a", field: value}
    with pytest.raises(ConfigError, match=reason):
        ExportConfig(**settings)
    with pytest.raises(ConfigError, match=reason):
        msgspec.convert(settings, ExportConfig)
    offer = SimpleNamespace(config=msgspec.json.encode(settings), device=object())
    with pytest.raises(UpgradeError, match=reason):
        settings_from_giver(offer)


@pytest.mark.parametrize(
    ("field", "value"),
    [("queues", 65), ("poll_us", -1), ("cache", "unsafe"), ("features_as", "9"), ("surplus", 1)],
)
def test_what_a_setting_s_type_excludes_is_refused(field, value):
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({"image": "a.img", "name": "a", field: value}, ExportConfig)


def test_settings_that_an_older_version_does_not_have_are_not_sent_to_it():
    config = ExportConfig(image="a.img", name="a", image_format="raw", socket_group="kvm")
    settings = json.loads(settings_for_taker(config, "the guest's serial"))
    assert set(settings) == SETTINGS_OF_0_1
    assert settings["serial"] == "the guest's serial"
