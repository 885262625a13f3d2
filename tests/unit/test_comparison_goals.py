# SPDX-License-Identifier: Apache-2.0
import pytest

from compare import reference
from compare.cases import CASES, Family
from compare.goals import (
    GOALS,
    NOISE,
    NULL_NOISE,
    Verdict,
    against,
    against_spdk,
    at_least,
    at_most,
    of_one_queue,
    rss_range,
    worst_idle,
)
from compare.measurements import Measurements, cpu, iops, p50
from compare.results import Footprint, Run, Sample
from compare.stats import Spread

CASE = "tmpfs-randread-4k-qd32"


def sample(subject, number, rate, *, case=CASE, cpu_us=1.0, p50_ns=1000, foreign=0.0):
    return Sample(
        *(case, subject, number, 1000, rate, rate * 4096, cpu_us),
        *(p50_ns, p50_ns, p50_ns, p50_ns, p50_ns, p50_ns, p50_ns, foreign),
    )


def seen(*samples, footprints=()):
    return Measurements(
        Run("full", "2026-01-01", 5, 2.0, samples=list(samples), footprints=list(footprints))
    )


def idle(wakeups=0.0, rss_kib=20_480):
    return Footprint("blkd", 1, 1 << 30, 1 << 26, wakeups, 0.0, 3, rss_kib, 1, 1, 1)


@pytest.mark.parametrize(
    ("limit", "noise", "median", "verdict"),
    [
        pytest.param(at_least(1.5), NULL_NOISE, 1.5, Verdict.MET, id="reached"),
        pytest.param(at_least(1.5), NULL_NOISE, 1.4, Verdict.MISSED, id="limit-beyond-noise"),
        pytest.param(at_least(0.95), NOISE, 0.9, Verdict.NOISE, id="par-within-noise"),
        pytest.param(at_least(0.95), NOISE, 0.8, Verdict.MISSED, id="par-beyond-noise"),
        pytest.param(at_most(1.0), NOISE, 1.1, Verdict.NOISE, id="not-above-within-noise"),
        pytest.param(at_most(1.0), NOISE, 1.3, Verdict.MISSED, id="not-above-beyond-noise"),
        pytest.param(at_most(0.5), NOISE, 0.55, Verdict.MISSED, id="half-is-half"),
        pytest.param(at_most(0, "/s"), 1.0, 0.0, Verdict.MET, id="none"),
        pytest.param(at_most(0, "/s"), 1.0, 0.2, Verdict.MISSED, id="hardly-any"),
        pytest.param(at_most(40, "MiB"), 1.0, 40.1, Verdict.MISSED, id="no-noise-in-memory"),
    ],
)
def test_a_verdict_knows_noise(limit, noise, median, verdict):
    assert limit.verdict(Spread(median, median, median, 5), noise) is verdict


def test_what_was_not_measured_is_neither_met_nor_missed():
    assert at_least(1).verdict(None, NOISE) is Verdict.UNKNOWN


def test_a_goal_is_judged_against_the_best_of_the_others():
    rounds = [
        *(sample("blkd", n, 300.0) for n in (1, 2, 3)),
        *(sample("qsd-threads", n, rate) for n, rate in enumerate((90.0, 100.0, 400.0), 1)),
        *(sample("qsd-native", n, 150.0) for n in (1, 2, 3)),
    ]
    found = against(CASE, Family.QSD, iops)(seen(*rounds))
    assert found.against == "QSD native"
    assert (found.spread.median, found.spread.rounds) == (2.0, 3)


def test_of_processor_time_and_latency_the_least_is_best():
    rounds = [
        sample("blkd", 1, 1.0, cpu_us=2.0, p50_ns=500),
        sample("qsd-threads", 1, 9.0, cpu_us=8.0, p50_ns=1000),
        sample("qsd-native", 1, 5.0, cpu_us=4.0, p50_ns=2000),
    ]
    by_cpu = against(CASE, Family.QSD, cpu)(seen(*rounds))
    by_latency = against(CASE, Family.QSD, p50)(seen(*rounds))
    assert (by_cpu.against, by_cpu.spread.median) == ("QSD native", 0.5)
    assert (by_latency.against, by_latency.spread.median) == ("QSD threads", 0.5)


def test_without_the_other_there_is_nothing_to_say():
    assert against(CASE, Family.QSD, iops)(seen(sample("blkd", 1, 1.0))) is None


def test_a_disturbed_round_does_not_count():
    rounds = [
        *(sample("blkd", n, 300.0) for n in (1, 3)),
        sample("blkd", 2, 30.0, foreign=0.7),
        *(sample("qsd-native", n, 100.0) for n in (1, 2, 3)),
    ]
    found = against(CASE, Family.QSD, iops)(seen(*rounds))
    assert (found.spread.low, found.spread.rounds) == (3.0, 2)


def test_where_all_rounds_were_disturbed_they_are_better_than_nothing():
    rounds = [sample("blkd", n, 30.0, foreign=0.7) for n in (1, 2)]
    assert seen(*rounds).spread(CASE, "blkd", iops).rounds == 2


def test_spdk_is_met_when_both_have_the_same_advantage_over_the_yardstick():
    there = reference.advantage(CASE, reference.SPDK, reference.QSD)
    rounds = [sample("blkd", 1, 100.0 * there), sample("qsd-native", 1, 100.0)]
    measure = against_spdk(CASE, Family.QSD, yardstick=reference.QSD, spdk=reference.SPDK)
    assert measure(seen(*rounds)).spread.median == pytest.approx(1.0)


def test_more_queues_are_compared_with_one_of_the_same_round():
    rounds = [
        sample("blkd", number, rate, case=f"null-randread-4k-qd32-{queues}q")
        for queues, rates in ((1, (10.0, 20.0)), (2, (11.0, 22.0)))
        for number, rate in enumerate(rates, 1)
    ]
    found = of_one_queue(2)(seen(*rounds))
    assert (found.spread.low, found.spread.high) == (pytest.approx(1.1), pytest.approx(1.1))


def test_the_worst_idle_export_counts():
    exports = [idle(wakeups=0.0), idle(wakeups=0.4), idle(wakeups=0.0)]
    found = worst_idle(lambda footprint: footprint.wakeups)(seen(footprints=exports))
    assert found.spread.median == 0.4


def test_memory_is_said_to_differ_by_its_range():
    found = rss_range(seen(footprints=[idle(rss_kib=20_480), idle(rss_kib=21_504)]))
    assert found.spread.median == 1.0


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.key)
def test_a_goal_can_be_judged_without_data(goal):
    assert [check.measure(seen()) for check in goal.checks] == [None] * len(goal.checks)


def test_figures_of_the_other_machine_are_of_cases_that_exist():
    assert {figure.case for figure in reference.FIGURES} <= set(CASES)
