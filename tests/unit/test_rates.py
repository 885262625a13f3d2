# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.statistics.figures import BOUNDS, BUCKETS, Cell, Errors, Figures, Histogram, Requests
from blkd.statistics.iostat_columns import iostat_columns
from blkd.statistics.rates import rates

SECOND = 10**9
MS = 10**6


def times(*nanoseconds):
    """A histogram of these times."""
    buckets = [0] * BUCKETS
    for each in nanoseconds:
        buckets[next(n for n, bound in enumerate(BOUNDS) if each <= bound)] += 1
    return Histogram(tuple(buckets), sum(nanoseconds))


def requests(count, size, *, ring=200, throttle=10, disk=MS):
    """So many requests of `size` bytes that took the same times in ns."""
    return Requests(
        count,
        count * size,
        times(*[ring] * count),
        times(*[throttle] * count),
        times(*[disk] * count),
    )


START = Figures(time_ns=5 * SECOND)


def after(seconds, *cells, **counts):
    return Figures(time_ns=START.time_ns + int(seconds * SECOND), cells=cells, **counts)


def test_rates_are_what_was_done_in_a_second():
    now = after(
        2,
        Cell("read", "4K", requests(100, 4096)),
        Cell("read", "64K", requests(20, 65536)),
        Cell("write", "16K", requests(40, 16384)),
        Cell("flush", "4K", requests(6, 0)),
        Cell("discard", "more", requests(4, 1 << 20)),
        Cell("write_zeroes", "more", requests(2, 1 << 20)),
        errors=Errors(io=3, no_space=1),
        cpu_ns=172 * 5000,
        in_flight=7,
        held=2,
        oldest_ns=1_500_000_000,
    )
    found = rates(now, START)
    assert found.seconds == 2
    assert found.iops == 86
    assert found.read.per_second == 60
    assert found.read.bytes_per_second == (100 * 4096 + 20 * 65536) / 2
    assert found.read.mean_bytes == (100 * 4096 + 20 * 65536) / 120
    assert found.write.per_second == 20
    assert found.flush.per_second == 3
    assert found.discard.per_second == 3
    assert found.errors == 2
    assert found.cpu_us == 5
    assert (found.in_flight, found.held, found.oldest) == (7, 2, 1.5)


def test_only_what_came_after_the_earlier_figures_counts():
    before = after(1, Cell("read", "4K", requests(1000, 4096, disk=500 * MS)))
    now = Figures(
        time_ns=before.time_ns + SECOND,
        cells=(Cell("read", "4K", before.of("read") + requests(10, 4096, disk=MS)),),
    )
    found = rates(now, before)
    assert found.iops == 10
    assert found.p99 < 0.003
    assert found.longest < 0.003


def test_latency_is_of_ring_throttle_and_disk_together():
    slow = requests(10, 4096, ring=MS, throttle=4 * MS, disk=2 * MS)
    found = rates(after(1, Cell("write", "4K", slow)), START)
    assert found.write.mean_seconds == pytest.approx(0.007)
    # Buckets double, so a quantile is less than twice what it is of.
    assert 0.007 / 2 < found.p50 <= found.p99 <= found.longest < 2 * 0.007
    assert found.throttled == pytest.approx(4 / 7)


def test_depth_is_the_time_of_requests_by_the_time_that_went_by():
    found = rates(after(1, Cell("read", "4K", requests(100, 4096, ring=0, throttle=0))), START)
    assert found.queue_depth == pytest.approx(0.1)


def test_utilisation_is_at_most_the_whole():
    assert rates(after(1, busy_ns=SECOND // 4), START).utilisation == 0.25
    assert rates(after(1, busy_ns=2 * SECOND), START).utilisation == 1


def test_nothing_is_said_of_requests_where_there_were_none():
    found = rates(after(1), START)
    assert found.iops == 0
    assert (found.p50, found.p99, found.longest, found.throttled, found.cpu_us) == (None,) * 5


def test_no_time_between_two_figures_gives_no_rates():
    assert rates(START, START) is None
    assert rates(START, after(1)) is None


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.1, 100))
def test_operations_add_up_to_all_requests(reads, writes, seconds):
    now = after(
        seconds,
        Cell("read", "4K", requests(reads, 4096)),
        Cell("write", "4K", requests(writes, 4096)),
    )
    found = rates(now, START)
    assert found.read.per_second + found.write.per_second == pytest.approx(found.iops)


def test_columns_are_those_of_iostat_in_its_units():
    now = after(
        2,
        Cell("read", "4K", requests(100, 4096, ring=0, throttle=0, disk=3 * MS)),
        Cell("write", "64K", requests(20, 65536, ring=0, throttle=0, disk=5 * MS)),
        Cell("flush", "4K", requests(10, 0, ring=0, throttle=0, disk=7 * MS)),
        busy_ns=SECOND,
    )
    columns = iostat_columns(rates(now, START))
    assert list(columns) == [
        *("r/s", "rkB/s", "r_await", "rareq-sz"),
        *("w/s", "wkB/s", "w_await", "wareq-sz"),
        *("d/s", "dkB/s", "d_await", "dareq-sz"),
        *("f/s", "f_await", "aqu-sz", "%util"),
    ]
    assert list(columns.values()) == pytest.approx(
        [50, 200, 3, 4, 10, 640, 5, 64, 0, 0, 0, 0, 5, 7, (300 + 100 + 70) / 2000, 50]
    )
