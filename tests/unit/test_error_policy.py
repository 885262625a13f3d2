# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import pytest

from blkd.errors import ConfigError
from blkd.export.config import ExportConfig
from blkd.export.holding import LONGEST_WAIT, Tries
from blkd.export.option import settings_of
from blkd.image.error_policy import ErrorPolicy, read_policy


@pytest.mark.parametrize(
    ("words", "policy"),
    [
        (("report", "report"), ErrorPolicy()),
        (("hold", "report"), ErrorPolicy(holds_no_space=True)),
        (("report", "hold"), ErrorPolicy(holds_errors=True)),
        (("hold", "hold:30"), ErrorPolicy(holds_no_space=True, holds_errors=True, longest=30)),
    ],
)
def test_words_are_a_policy(words, policy):
    assert read_policy(*words) == policy
    assert policy.holds == ("hold" in "".join(words))


@pytest.mark.parametrize(
    "word", ["stop", "hold:", "hold:x", "hold:0", "hold:-1", "hold:1.5", "hold:86401", "report:1"]
)
def test_other_words_are_refused_by_name(word):
    (setting,) = (each for each in settings_of(ExportConfig) if each.field == "on_error")
    with pytest.raises(ConfigError):
        setting.check(word)


def test_what_is_in_vain_is_tried_less_and_less_often():
    tries = Tries(0.0)
    times = [second for second in range(1, 101) if tries.are_due(float(second), at_once=False)]
    assert times[:5] == [1, 3, 7, 15, 31]
    assert {after - before for before, after in pairwise(times[4:])} == {int(LONGEST_WAIT)}


def test_more_space_is_a_reason_to_try_at_once():
    tries = Tries(0.0)
    for second in range(1, 20):
        tries.are_due(float(second), at_once=False)
    assert not tries.are_due(20.0, at_once=False)
    assert tries.are_due(20.5, at_once=True)
    assert tries.are_due(21.5, at_once=False), "it begins anew"
