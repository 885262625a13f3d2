# SPDX-License-Identifier: Apache-2.0
"""Budgets by a clock of their own: what is begun never exceeds a rate, and nothing is lost."""

import heapq
import itertools

import pytest
from blkd.limits_probes import Worker
from hypothesis import given
from hypothesis import strategies as st

from blkd.block import Rates  # noqa: TID251 - as the data path has them
from blkd.statistics.limits_page import (
    PAGE_BYTES,
    SECOND,
    UNITS_A_REQUEST,
    Dimension,
    LimitsPage,
    Line,
)

READS, WRITES = 0, 1
BEGIN = 1000 * SECOND
TOLERANCE = SECOND // 50
ONE = UNITS_A_REQUEST


class Disk:
    """A page with limits, and a worker that keeps them."""

    def __init__(self, *, iops=0, burst=0, credit=0, bps=0, **others):
        self.memory = memoryview(bytearray(PAGE_BYTES))
        self.rates = Rates(self.memory)
        self.limit(BEGIN, Dimension.IOPS_TOTAL, iops, burst, credit)
        self.limit(BEGIN, Dimension.BPS_TOTAL, bps)
        for name, rate in others.items():
            self.limit(BEGIN, Dimension[name.upper()], rate)
        self.worker = Worker(self.memory)

    def limit(self, now, dimension, average, burst=0, credit=0):
        each = dimension.units
        self.rates.limit(
            dimension,
            average=average * each,
            burst=burst * each,
            credit=credit * each,
            present=now,
        )

    def change(self, now, iops, burst=0, credit=0):
        self.limit(now, Dimension.IOPS_TOTAL, iops, burst, credit)
        self.worker.take()

    def run(self, queues, until, *, now=BEGIN, late=0):
        """Begin what `queues` of (requests at a time, nanoseconds of each) want: times of each.

        Who wakes is `late` by so much.
        """
        times = [[] for _ in queues]
        events = []
        for number, (depth, _) in enumerate(queues):
            arrived = [now] * depth
            start = self.worker.place(READS, ONE, 4096, now, now)[1]
            heapq.heappush(events, (max(start, now), number, arrived))
        while events and events[0][0] <= until:
            start, number, arrived = heapq.heappop(events)
            at = start + late
            while start <= at and arrived[0] <= at:
                times[number].append(at)
                arrived.append(at + queues[number][1])
                arrived.pop(0)
                since = min(arrived[0], at)
                start = self.worker.place(READS, ONE, 4096, since, at)[1]
            heapq.heappush(events, (max(start, arrived[0]), number, arrived))
        return times


def most_in(times, length):
    """The most that begins within so many nanoseconds."""
    first, most = 0, 0
    for last, time in enumerate(times):
        while time - times[first] >= length:
            first += 1
        most = max(most, last - first + 1)
    return most


queues = st.lists(st.tuples(st.integers(1, 32), st.integers(0, 1_000_000)), min_size=1, max_size=6)


@pytest.mark.parametrize("iops", [1, 100, 1000, 20_000, 200_000])
@pytest.mark.parametrize("late", [0, 50_000, 5_000_000], ids=["in-time", "50us-late", "5ms-late"])
def test_long_run_is_the_rate_however_late_who_waits_wakes(iops, late):
    seconds = max(2, 20 // iops, min(10, 20_000 // iops))
    depth = max(32, iops * late // SECOND * 2)
    [times] = Disk(iops=iops).run([(depth, 0)], BEGIN + seconds * SECOND, late=late)
    wanted = iops * seconds
    assert abs(len(times) - wanted) <= 1 + wanted * TOLERANCE / SECOND / seconds + wanted * 0.001


@given(st.integers(1, 50_000), queues, st.integers(1, 200))
def test_never_more_begins_than_the_rate_and_the_tolerance_allow(iops, wanted, milliseconds):
    length = milliseconds * 1_000_000
    found = Disk(iops=iops).run(wanted, BEGIN + SECOND // 5)
    times = sorted(itertools.chain.from_iterable(found))
    allowed = iops * (length + TOLERANCE) / SECOND + len(wanted) + 1
    assert most_in(times, length) <= allowed


@pytest.mark.parametrize("depths", [(32, 1), (1, 32), (32, 16, 1), (4, 4, 4, 4)], ids=str)
def test_all_vrings_get_the_same_whatever_they_have_queued(depths):
    found = Disk(iops=2000).run([(depth, 1000) for depth in depths], BEGIN + 5 * SECOND)
    counts = [len(times) for times in found]
    fair = sum(counts) / len(counts)
    assert all(abs(count - fair) <= fair * 0.02 for count in counts), counts


@given(
    st.integers(10, 5000),
    st.integers(2, 10),
    st.integers(1, 5),
    st.floats(0, 20),
)
def test_a_burst_lasts_as_long_as_was_saved_up_for_it(iops, factor, length, rest):
    burst = iops * factor
    credit = (burst - iops) * length
    disk = Disk(iops=iops, burst=burst, credit=credit)
    now = BEGIN + int(rest * SECOND)
    [times] = disk.run([(64, 0)], now + SECOND, now=now)
    saved = min(credit, iops * rest)
    wanted = min(burst, iops + saved)
    assert len(times) <= wanted + burst * TOLERANCE / SECOND + 2
    assert len(times) >= wanted - 2


def test_no_burst_is_given_at_the_start():
    [times] = Disk(iops=1000, burst=10_000, credit=90_000).run([(64, 0)], BEGIN + SECOND)
    assert len(times) <= 1000 + 1


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 10 * SECOND))
def test_a_change_gives_and_takes_no_credit(before, after, rest):
    disk = Disk(iops=before)
    now = BEGIN + rest
    disk.change(now, after, 2 * after, after * 1000)
    [times] = disk.run([(64, 0)], now + SECOND, now=now)
    saved = before * min(rest, TOLERANCE) / SECOND  # not what a burst would have saved up
    assert len(times) <= after + saved + after * 2 * TOLERANCE / SECOND + 2


def test_a_debt_stays_when_the_rate_changes():
    disk = Disk(iops=100)
    for _ in range(100):
        disk.worker.place(READS, ONE, 0, BEGIN, BEGIN)
    disk.change(BEGIN, 1000)
    request, start = disk.worker.place(READS, ONE, 0, BEGIN, BEGIN)
    assert start == pytest.approx(BEGIN + SECOND // 10, abs=10)
    disk.change(BEGIN, 10)
    assert disk.worker.look(request, BEGIN, BEGIN) == pytest.approx(BEGIN + 10 * SECOND, abs=10)


def test_what_waits_begins_at_once_when_its_limit_is_lifted():
    disk = Disk(iops=1)
    disk.worker.place(READS, ONE, 0, BEGIN, BEGIN)
    request, start = disk.worker.place(READS, ONE, 0, BEGIN, BEGIN)
    assert start > BEGIN
    disk.change(BEGIN, 0)
    assert disk.worker.look(request, BEGIN, BEGIN) == BEGIN


def test_reads_and_writes_have_limits_of_their_own_and_one_together():
    disk = Disk(iops=1000, iops_read=10)
    reads = [disk.worker.place(READS, ONE, 0, BEGIN, BEGIN)[1] for _ in range(2)]
    writes = [disk.worker.place(WRITES, ONE, 0, BEGIN, BEGIN)[1] for _ in range(2)]
    assert reads[1] - BEGIN == pytest.approx(SECOND // 10, abs=10)
    assert writes[1] - BEGIN == pytest.approx(3 * SECOND // 1000, abs=10)


def test_a_request_without_data_keeps_no_bandwidth():
    disk = Disk(bps=1)
    for _ in range(3):
        assert disk.worker.place(WRITES, ONE, 0, BEGIN, BEGIN)[1] == BEGIN


@given(st.integers(1, 2**40), st.integers(1, 2**32), st.integers(0, 2**58))
def test_extreme_rates_and_sizes_have_a_start_that_is_no_garbage(bps, size, idle):
    disk, now = Disk(bps=bps), BEGIN
    start = [disk.worker.place(READS, ONE, size, now, now)[1] for _ in range(3)]
    assert start == sorted(start)
    assert start[0] == BEGIN
    year = 365 * 24 * 3600 * SECOND
    assert start[1] == pytest.approx(BEGIN + min(size * SECOND / bps, year), rel=1e-6, abs=10)
    later = max(start[2], BEGIN) + idle % (2**57 // bps * SECOND + 1)
    assert disk.worker.place(READS, ONE, size, later, later)[1] >= later


def test_another_process_goes_on_where_the_first_one_was():
    disk = Disk(iops=10, burst=1000, credit=1000)
    for _ in range(50):
        disk.worker.place(READS, ONE, 0, BEGIN, BEGIN)
    again = Rates(disk.memory)
    again.limit(
        Dimension.IOPS_TOTAL,
        average=10 * ONE,
        burst=1000 * ONE,
        credit=1000 * ONE,
        present=BEGIN + SECOND,
    )
    start = Worker(disk.memory).place(READS, ONE, 0, BEGIN + SECOND, BEGIN + SECOND)[1]
    assert start == pytest.approx(BEGIN + 5 * SECOND, abs=10)


def test_a_grant_of_the_group_is_kept_beside_the_limit_of_the_disk():
    disk = Disk(iops=1000)
    page = LimitsPage(disk.memory)
    page.grant(Dimension.IOPS_TOTAL, Line(0, BEGIN, 10 * ONE))
    disk.worker.take()
    starts = [disk.worker.place(READS, ONE, 0, BEGIN, BEGIN)[1] for _ in range(2)]
    assert starts[1] - BEGIN == pytest.approx(SECOND // 10, abs=10)
    assert page.demand(Dimension.IOPS_TOTAL).used == 2 * ONE
