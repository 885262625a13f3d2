# SPDX-License-Identifier: Apache-2.0
"""What the daemon grants an export, and reads of it."""

from hypothesis import given
from hypothesis import strategies as st

from blkd.statistics.limits_page import SECOND, UNITS_A_REQUEST, Dimension, LimitsPage, Line

u64 = st.integers(0, 2**64 - 1)
rates = st.integers(1, 2**40)
times = st.integers(0, 2**60)


@given(st.builds(Line, u64, times, rates), rates, st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_bent_line_goes_on_where_it_was(line, other, before, after):
    bent = line.bent(other, line.since + before)
    assert bent.at(line.since + before) == line.at(line.since + before)
    gained = (bent.at(line.since + before + after) - bent.base) % 2**64
    assert gained == after * other // SECOND % 2**64


@given(u64, times, rates)
def test_what_is_granted_is_found_by_the_next_supervisor(base, since, rate):
    page, line = LimitsPage.empty(), Line(base, since, rate)
    page.grant(Dimension.BPS_READ, line)
    assert page.granted(Dimension.BPS_READ, since) == line
    assert page.granted(Dimension.BPS_WRITE, since) is None


def test_a_grant_of_the_future_is_not_gone_on_from():
    page = LimitsPage.empty()
    page.grant(Dimension.IOPS_TOTAL, Line(0, 5 * SECOND, 1000))
    assert page.granted(Dimension.IOPS_TOTAL, 4 * SECOND) is None


def test_a_page_in_which_garbage_was_written_has_no_grant():
    memory = bytearray(b"\xa5" * 8192)
    page = LimitsPage(memoryview(memory))
    assert not page.is_known
    assert page.granted(Dimension.IOPS_TOTAL, 2**63) is None
    assert page.demand(Dimension.IOPS_TOTAL).waiting


def test_an_empty_page_is_known_and_wants_nothing():
    page = LimitsPage.empty()
    assert page.is_known
    assert [page.demand(d).waiting for d in Dimension] == [False] * 6


def test_a_request_is_so_many_units_and_a_byte_is_one():
    assert Dimension.IOPS_WRITE.units == UNITS_A_REQUEST
    assert Dimension.BPS_TOTAL.units == 1
