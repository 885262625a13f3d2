# SPDX-License-Identifier: Apache-2.0
import pytest

from blkd.config import cpu_list


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
