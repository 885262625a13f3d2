# SPDX-License-Identifier: Apache-2.0
"""Limits as people write them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.errors import ConfigError
from blkd.export.limits import (
    MOST_LENGTH,
    NAMES,
    Limit,
    Limits,
    by_dimension,
    changed,
    parse,
    plain,
    words,
    write,
)
from blkd.statistics.limits_page import Dimension

lengths = st.integers(1, int(MOST_LENGTH * 1000)).map(lambda each: each / 1000)
bursts = st.builds(
    lambda rate, more, length: Limit(rate, rate + more, length),
    st.integers(1, 10**8),
    st.integers(1, 10**8),
    lengths,
)
each = st.none() | st.builds(Limit, st.integers(1, 10**8)) | bursts
limits = st.builds(Limits, each, each, each, each, each, each, st.integers(0, 2**30))


@given(limits)
def test_what_is_written_is_read(limits):
    assert parse(write(limits)) == limits
    assert changed(Limits(), plain(limits)) == limits


@given(limits)
def test_limits_survive_json(limits):
    assert msgspec.json.decode(msgspec.json.encode(limits), type=Limits) == limits


def test_an_empty_text_limits_nothing():
    assert parse("") == Limits()
    assert not Limits()
    assert write(Limits()) == ""


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        pytest.param("iops=5000", Limits(iops=Limit(5000)), id="requests"),
        pytest.param("iops=20k", Limits(iops=Limit(20_000)), id="thousands"),
        pytest.param("bps-write=200M", Limits(bps_write=Limit(200 << 20)), id="bytes"),
        pytest.param(
            "iops=5000,burst-iops=20000,burst-length=10s",
            Limits(iops=Limit(5000, 20_000, 10.0)),
            id="burst",
        ),
        pytest.param("iops=1,burst-iops=2", Limits(iops=Limit(1, 2, 1.0)), id="as-long-as-in-qemu"),
        pytest.param(
            "iops-total=100,iops-total-max=200,iops-total-max-length=3",
            Limits(iops=Limit(100, 200, 3.0)),
            id="as-qemu-has-it",
        ),
        pytest.param(
            "bps_read=1M, bps_read_max=2M, bps_read_max_length=500ms",
            Limits(bps_read=Limit(1 << 20, 2 << 20, 0.5)),
            id="as-qemu-had-it",
        ),
        pytest.param(
            "iops=1,bps=9,burst-iops=2,burst-bps=10,burst-bps-length=1m,burst-length=5s",
            Limits(iops=Limit(1, 2, 5.0), bps=Limit(9, 10, 60.0)),
            id="a-length-of-its-own",
        ),
        pytest.param(
            "iops=250,iops-size=16K", Limits(iops=Limit(250), iops_size=16384), id="iops-size"
        ),
    ],
)
def test_a_text_means_limits(text, meant):
    assert parse(text) == meant


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("iops", "'iops' is no limit and value; write iops=5000"),
        ("speed=1", "there is no limit 'speed'"),
        ("iops=fast", "iops: 'fast' is no number of requests"),
        ("iops=0", "iops can be 1 to 1e\\+09, not 0"),
        ("iops=-5", "'-5' is no number of requests"),
        ("bps=200MB", "is no size that all read alike"),
        ("bps=0", "bps can be 1 to"),
        ("iops=1,iops=2", "iops is given twice"),
        ("iops=1,iops-total=2", "a limit is given twice, by two of its names"),
        ("burst-iops=5", "a burst of iops needs a rate"),
        ("iops=5,burst-iops=5", "burst-iops of 5 is no more than iops of 5"),
        ("iops=5,burst-iops-length=5", "burst-iops-length is of no burst"),
        ("iops=5,burst-length=5", "burst-length is of no burst"),
        ("iops=5,burst-iops=9,burst-length=soon", "'soon' is no time; write 10s"),
        ("iops=5,burst-iops=9,burst-length=2000h", "burst-length can be 0.001 to 86400"),
    ],
)
def test_what_is_no_limit_is_refused(text, reason):
    with pytest.raises(ConfigError, match=reason):
        parse(text)


@pytest.mark.parametrize("value", [True, [1], 0.5, float("nan"), float("inf"), {}])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ConfigError):
        changed(Limits(), {"iops": value})


def test_what_is_not_given_stays():
    before = parse("iops=100,burst-iops=200,burst-length=5s,bps=1M")
    assert changed(before, {"iops": 150}) == parse("iops=150,burst-iops=200,burst-length=5s,bps=1M")
    assert changed(before, {"burst-length": "7s"}).iops == Limit(100, 200, 7.0)
    assert changed(before, {"burst-iops": None}) == parse("iops=100,bps=1M")


def test_a_limit_that_is_taken_away_takes_its_burst_along():
    before = parse("iops=100,burst-iops=200,burst-length=5s,bps=1M")
    assert changed(before, words(["iops="])) == parse("bps=1M")


def test_a_burst_under_a_higher_rate_is_refused():
    with pytest.raises(ConfigError, match="burst-iops of 200 is no more than iops of 300"):
        changed(parse("iops=100,burst-iops=200"), {"iops": 300})


def test_limits_are_those_of_the_data_path():
    assert len(NAMES) == len(Dimension)
    found = by_dimension(parse("iops=1,iops-read=2,iops-write=3,bps=4,bps-read=5,bps-write=6"))
    assert {each.name: limit.rate for each, limit in found.items()} == {
        "IOPS_TOTAL": 1,
        "IOPS_READ": 2,
        "IOPS_WRITE": 3,
        "BPS_TOTAL": 4,
        "BPS_READ": 5,
        "BPS_WRITE": 6,
    }
