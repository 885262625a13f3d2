# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.cli.quantities import amount, count, decimal, duration, share

MOST = 6  # characters of the columns of blkd top


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *(
            (None, "-"),
            (0, "0"),
            (0.001, "0"),
            (0.04, "0.04"),
            (0.25, "0.2"),
            (9.94, "9.9"),
            (9.96, "10"),
            (12345.6, "12346"),
        ),
        *((99_999.4, "99999"), (182_400, "182k"), (999_600, "1.0M"), (12_345_678, "12M")),
    ],
)
def test_counts(value, shown):
    assert count(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((None, "-"), (0, "0"), (512, "512"), (1000, "1.0K"), (1536, "1.5K"), (200 << 20, "200M")),
        *((1023 << 20, "1.0G"), (3 << 40, "3.0T")),
    ],
)
def test_amounts(value, shown):
    assert amount(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((None, "-"), (0, "0"), (160e-9, "160ns"), (999.7e-9, "1.0µs"), (85e-6, "85µs")),
        *((1.23e-3, "1.2ms"), (0.017, "17ms"), (2.1, "2.1s"), (59, "59s"), (250, "4m10s")),
        *((99.7, "1m40s"), (3599.7, "1h00m"), (7380, "2h03m")),
    ],
)
def test_durations(value, shown):
    assert duration(value) == shown


def test_shares_and_decimals():
    assert (share(None), share(0), share(0.126), share(1)) == ("-", "0%", "13%", "100%")
    assert (decimal(None), decimal(0), decimal(1.26), decimal(31.7)) == ("-", "0", "1.3", "32")


@given(st.floats(0, 1e10), st.floats(0, 2.0**60), st.floats(0, 300_000))
def test_all_that_is_likely_fits_into_its_column(number, size, seconds):
    assert len(count(number)) <= MOST
    assert len(amount(size)) <= MOST
    assert len(duration(seconds)) <= MOST
