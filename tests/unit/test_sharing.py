# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blkd.daemon.sharing import (
    COUNTER,
    PERIOD,
    SHORT_CREDIT,
    Demand,
    Rate,
    Seen,
    SharedRate,
    divide,
)

weights = st.integers(1, 1000)
paces = st.floats(0, 1e9)
demands = st.lists(st.builds(Demand, weights, paces, st.booleans()), min_size=1, max_size=8)
rates = st.integers(8, 10**9)  # one unit for each of them at the least
counts = st.integers(0, COUNTER - 1)


def share(rate, demands, at):
    return rate * demands[at].weight / sum(demand.weight for demand in demands)


# ---- one division ----


@given(rates, demands)
def test_no_more_is_granted_than_there_is(rate, demands):
    granted = divide(rate, demands)
    assert sum(granted) <= rate + len(demands)  # one each, where the rate has so little
    if min(granted) > 1:
        assert sum(granted) <= rate


@given(rates, demands)
def test_who_waits_has_its_share_by_weight_at_the_least(rate, demands):
    for at, granted in enumerate(divide(rate, demands)):
        if demands[at].waits:
            assert granted >= share(rate, demands, at) * (1 - 1e-9) - 1


@given(rates, demands)
def test_nothing_is_left_over(rate, demands):
    assert sum(divide(rate, demands)) >= rate * (1 - 1e-9) - len(demands)


@given(rates, demands)
def test_who_gets_less_than_it_needs_has_as_much_by_weight_as_anybody(rate, demands):
    granted = divide(rate, demands)
    most = max(each / demand.weight for each, demand in zip(granted, demands, strict=True))
    if any(demand.waits for demand in demands):
        for each, demand in zip(granted, demands, strict=True):
            if demand.waits:
                assert (each + 1) / demand.weight >= most * (1 - 1e-9) - 1


@pytest.mark.parametrize(
    ("members", "granted"),
    [
        pytest.param([Demand(1, 0, True), Demand(1, 0, True)], [500, 500], id="even"),
        pytest.param([Demand(3, 0, True), Demand(1, 0, True)], [750, 250], id="by-weight"),
        pytest.param([Demand(3, 0, False), Demand(1, 0, False)], [750, 250], id="nobody-needs-any"),
        pytest.param([Demand(1, 80, False), Demand(1, 0, True)], [107, 892], id="what-one-uses"),
        pytest.param([Demand(1, 0, False)], [1000], id="alone"),
        pytest.param([], [], id="nobody"),
    ],
)
def test_a_rate_of_a_thousand_is_divided(members, granted):
    assert divide(1000, members) == granted


# ---- over time ----


@dataclass
class Played:
    """A member that needs so many units a second and uses what of it is granted."""

    need: float
    used: float = 0
    granted: int = 0
    before: int = 0

    def live(self, seconds):
        self.used += min(self.need, self.granted) * seconds

    @property
    def seen(self):
        return Seen((self.before + int(self.used)) % COUNTER, waits=self.need > self.granted)


def play(shared, members, seconds, start=0.0):
    """Let members live with a shared rate, which is divided every PERIOD."""
    for step in range(round(seconds / PERIOD)):
        seen = {name: member.seen for name, member in members.items()}
        for name, granted in shared.divide(start + step * PERIOD, seen).items():
            if isinstance(members[name], Played):
                members[name].granted = granted
        for member in members.values():
            member.live(PERIOD)
    return start + seconds


def shared_by(rate, members, weights=()):
    shared = SharedRate(rate, 0.0)
    for name in members:
        shared.join(name, dict(weights).get(name, 1), members[name].seen.used)
    return shared


@given(
    st.integers(10**5, 10**8),  # from 100 requests a second on, of 1024 units each
    st.lists(st.tuples(st.floats(0, 2), weights), min_size=1, max_size=5),
)
@example(1000, [(1.0, 1), (0.001953125, 1)])  # one uses all, the other a little now and then
def test_a_group_comes_to_its_rate_and_not_beyond(average, needs):
    members = {str(at): Played(need * average) for at, (need, _) in enumerate(needs)}
    weights = {str(at): weight for at, (_, weight) in enumerate(needs)}
    play(shared_by(Rate(average), members, weights), members, 10)
    used = sum(member.used for member in members.values())
    wanted = min(sum(member.need for member in members.values()), average) * 10
    assert used <= average * (10 + 3 * SHORT_CREDIT)
    assert used >= wanted * 0.95 - 10 * len(members)


@given(weights, weights)
def test_members_that_need_all_use_it_by_their_weights(first, second):
    members = {"a": Played(1e9), "b": Played(1e9)}
    play(shared_by(Rate(10**6), members, {"a": first, "b": second}), members, 10)
    assert members["a"].used / members["b"].used == pytest.approx(first / second, rel=0.005)


def test_what_one_does_not_need_is_the_others_within_two_divisions():
    members = {"a": Played(1e9), "b": Played(1e9)}
    shared = shared_by(Rate(10_000), members)
    now = play(shared, members, 1)
    members["b"].need = 0
    play(shared, members, 0.5, now)
    assert members["a"].granted >= 9_800
    shared.leave("b")
    del members["b"]
    play(shared, members, 2 * PERIOD, now + 0.5)
    assert members["a"].granted >= 10_000


def test_who_joins_begins_with_its_share():
    members = {"a": Played(1e9), "b": Played(0)}
    shared = shared_by(Rate(1000), {"a": members["a"]})
    now = play(shared, {"a": members["a"]}, 1)
    shared.join("b", 3, 0)
    play(shared, members, PERIOD, now)
    assert members["b"].granted == 750


def test_who_begins_has_its_share_at_once():
    members = {"a": Played(1e9), "b": Played(0)}
    shared = shared_by(Rate(10_000), members)
    now = play(shared, members, 1)
    assert members["b"].granted < 200
    members["b"].need = 1e9
    play(shared, members, PERIOD, now)
    assert members["b"].granted >= 4_990


class Liar:
    """A member that says whatever it likes."""

    def __init__(self, claims):
        self.claims = claims
        self.step = 0

    def live(self, _seconds):
        self.step += 1

    @property
    def seen(self):
        return Seen(*self.claims[self.step % len(self.claims)])


@given(
    st.lists(st.tuples(counts, st.booleans()), min_size=1, max_size=10),
    weights,
    weights,
    st.integers(0, 50),
)
def test_a_liar_takes_nothing_of_the_share_of_who_waits(claims, honest, lying, units):
    members = {"a": Played(1e9), "liar": Liar(claims)}
    rate = Rate(1_000_000, 2_000_000 if units % 2 else 0, units / 10)
    shared = shared_by(rate, members, {"a": honest, "liar": lying})
    play(shared, members, 4)
    least = 1_000_000 * honest / (honest + lying) * 4
    assert members["a"].used >= least * 0.97 - 1000


@given(st.lists(st.tuples(counts, st.booleans()), min_size=1, max_size=10))
def test_a_liar_lets_nobody_use_more_than_the_group_may(claims):
    members = {"a": Played(1e9), "liar": Liar(claims)}
    shared = shared_by(Rate(1000, 3000, 1.0), members)
    for step in range(200):
        seen = {name: member.seen for name, member in members.items()}
        grants = shared.divide(step * PERIOD, seen)
        assert sum(grants.values()) <= 3000
        members["a"].granted = grants["a"]
        for member in members.values():
            member.live(PERIOD)


# ---- bursts ----


def test_a_group_begins_without_a_burst():
    members = {"a": Played(1e9)}
    play(shared_by(Rate(1000, 4000, 10.0), members), members, 5)
    assert members["a"].used == pytest.approx(5000, rel=0.01)


def test_who_has_rested_bursts_for_as_long_as_it_may():
    members = {"a": Played(0)}
    shared = shared_by(Rate(1000, 4000, 2.0), members)
    now = play(shared, members, 60)
    members["a"].need = 1e9
    now = play(shared, members, 1.8, now)
    assert members["a"].used == pytest.approx(4000 * 1.8, rel=0.02)
    now = play(shared, members, 2, now)
    before = members["a"].used
    play(shared, members, 5, now)
    assert members["a"].used - before == pytest.approx(5000, rel=0.01)
    assert before == pytest.approx(3000 * 2.0 + 1000 * 3.8, rel=0.02)


def test_a_burst_is_earned_by_what_was_not_used():
    members = {"a": Played(500)}
    shared = shared_by(Rate(1000, 4000, 10.0), members)
    now = play(shared, members, 4)
    members["a"].need = 1e9
    play(shared, members, 6, now)
    assert members["a"].used == pytest.approx(10_000, rel=0.01)


def test_grants_are_not_left_alone_while_a_burst_goes_on():
    members = {"a": Played(0)}
    shared = shared_by(Rate(1000, 4000, 1.0), members)
    now = play(shared, members, 10)
    assert shared.is_settled
    members["a"].need = 3000
    now = play(shared, members, 0.2, now)
    assert not members["a"].seen.waits  # and nothing would wake anybody
    assert not shared.is_settled
    play(shared, members, 5, now)
    assert members["a"].granted == pytest.approx(1000, rel=0.02)


# ---- rest ----


def test_nobody_is_looked_at_while_all_have_enough():
    members = {"a": Played(100), "b": Played(300)}
    shared = shared_by(Rate(1000), members)
    play(shared, members, 1)
    assert shared.is_settled
    assert sum(member.granted for member in members.values()) <= 1000
    members["b"].need = 2000
    play(shared, members, 1, 1.0)
    assert not shared.is_settled


def test_another_rate_holds_from_the_next_division_on():
    members = {"a": Played(1e9)}
    shared = shared_by(Rate(1000), members)
    now = play(shared, members, 1)
    shared.change(Rate(50))
    play(shared, members, PERIOD, now)
    assert members["a"].granted <= 63


def test_a_count_that_begins_anew_is_no_use_of_all_there_is():
    members = {"a": Played(1e9, before=COUNTER - 100), "b": Played(1e9)}
    shared = shared_by(Rate(1000), members)
    play(shared, members, 2)
    assert members["b"].used == pytest.approx(1000, rel=0.02)
