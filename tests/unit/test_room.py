# SPDX-License-Identifier: Apache-2.0
import pytest

from blkd.daemon.room import Measured, Threshold
from blkd.errors import ConfigError

GIB = 1 << 30
TENTH = Threshold.read("10%")


def measured(free, *, allocated=1, size=50):
    return Measured(free=free * GIB, total=100 * GIB, size=size * GIB, allocated=allocated * GIB)


@pytest.mark.parametrize(
    ("text", "least"),
    [("5%", 5 * GIB), ("0.5%", GIB / 2), ("20G", 20 * GIB), ("0%", 0), ("0", 0)],
)
def test_a_threshold_is_a_share_or_a_size(text, least):
    assert Threshold.read(text).of(100 * GIB) == pytest.approx(least)


@pytest.mark.parametrize("text", ["", "%", "100%", "-1%", "nan%", "inf%", "5 percent", "-1"])
def test_what_is_neither_is_refused(text):
    with pytest.raises(ConfigError):
        Threshold.read(text)


@pytest.mark.parametrize(("free", "full"), [(50, False), (10, False), (9, True), (0, True)])
def test_less_than_the_threshold_is_nearly_full(free, full):
    assert TENTH.judge(measured(free), None).nearly_full == full


def test_an_image_that_has_all_of_its_space_is_never_nearly_full():
    assert not TENTH.judge(measured(0, allocated=50), None).nearly_full


def test_it_is_over_only_a_quarter_above_the_threshold():
    full = TENTH.judge(measured(9), None)
    again = TENTH.judge(measured(12), full)
    assert again.nearly_full
    assert not TENTH.judge(measured(13), again).nearly_full


def test_nothing_is_nearly_full_without_a_threshold():
    assert not Threshold.read("0%").judge(measured(0), None).nearly_full


@pytest.mark.parametrize(("free", "near"), [(39, True), (41, False)])
def test_the_threshold_is_near_where_it_may_be_crossed_soon(free, near):
    assert TENTH.is_near(TENTH.judge(measured(free), None)) == near
