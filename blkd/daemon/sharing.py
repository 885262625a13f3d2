# SPDX-License-Identifier: Apache-2.0
"""How the rate of a group is divided among its members: weighted max-min fairness, in numbers only.

A member is granted what it needs, but where others wait for more not above its share by weight;
what is left goes to those who wait.  What was granted and not used comes back as credit, so that
the group as a whole comes to its rate, and a burst has something to live on.  Units are bytes, or
parts of a request; times are seconds of a clock that only advances.

What a member says of itself may be a lie.  It is believed to have used at most what it was granted,
and whoever waits without end is granted what an honest member would be that needs all there is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PERIOD: Final = 0.02
"""Seconds between two divisions while somebody waits."""
SHORT_CREDIT: Final = 2 * PERIOD
"""Seconds of its rate that a group without bursts may catch up on."""
SPENDING: Final = 0.1
"""Seconds over which credit is spent, where the most that the group may use allows."""
CATCHING_UP: Final = 1.25
"""The most, as a multiple of its rate, that a group without bursts may use to catch up."""
SLOWEST: Final = 0.5
"""The least, likewise, that is left to a group that has used too much."""
ROOM: Final = 1.25
"""What a member that does not wait is granted, as a multiple of what it uses."""
LEAST: Final = 1 / 64
"""Of its share: what a member is granted that uses nothing, so that it can begin."""
FORGETTING: Final = 0.1
"""Seconds in which half of what a member has used is forgotten."""
NEARLY: Final = 0.95
"""Of what it may use: who uses so much is taken to wait, whether it was seen to or not."""
REMEMBERED: Final = 5 * PERIOD
"""Seconds for which one that has waited is taken to need more: where wake-ups come late, one with
one request at a time does not wait in each period, and must not lose its share by that."""
LARGEST: Final = 10.0
"""Seconds of its grant that a member may have used in advance, as by one large request."""
COUNTER: Final = 1 << 64
"""Where a member's count of what it has used begins anew."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a group may use of one kind of units."""

    average: int
    """Units a second, 1 at the least."""
    most: int = 0
    """Units a second in a burst; 0 for none."""
    length: float = 0.0
    """Seconds that a burst may last after the group has rested."""

    @property
    def _ceiling(self) -> float:
        return float(self.most) if self.most > self.average else self.average * CATCHING_UP

    @property
    def _most_credit(self) -> float:
        burst = (self.most - self.average) * self.length
        return max(burst, self.average * SHORT_CREDIT)

    def limit_credit(self, credit: float) -> float:
        """What is kept of a credit in units, which is a debt below 0."""
        return min(max(credit, -self.average * SHORT_CREDIT), self._most_credit)

    def at(self, credit: float) -> float:
        """Units a second that all members together may be granted."""
        wanted = self.average + credit / SPENDING
        return min(max(wanted, self.average * SLOWEST), self._ceiling)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a member needs."""

    weight: int
    pace: float
    """Units a second that it has used of late."""
    waits: bool
    """Whether it needs more than it was granted."""


def divide(rate: float, demands: Sequence[Demand]) -> list[int]:
    """The units a second that each member is granted, one at the least.

    Their sum is `rate` at the most, or one for each member.
    """
    total = sum(demand.weight for demand in demands)
    wanted = [_wanted(demand, rate, total) for demand in demands]
    level = _level(rate, demands, wanted)
    if math.isinf(level):  # there is enough: what is left goes to all
        spare = (rate - sum(wanted)) / total if total else 0.0
        grants = [
            want + spare * demand.weight for want, demand in zip(wanted, demands, strict=True)
        ]
    else:
        grants = [
            min(want, level * demand.weight) for want, demand in zip(wanted, demands, strict=True)
        ]
    return [max(int(grant), 1) for grant in grants]


def _wanted(demand: Demand, rate: float, total: int) -> float:
    if demand.waits:
        return math.inf
    return demand.pace * ROOM + LEAST * rate * demand.weight / total


def _level(rate: float, demands: Sequence[Demand], wanted: Sequence[float]) -> float:
    """Units a second, for a weight of one, to which all are filled up that want so much."""
    left, weight = rate, sum(demand.weight for demand in demands)
    for at in sorted(range(len(demands)), key=lambda at: wanted[at] / demands[at].weight):
        if wanted[at] * weight >= left * demands[at].weight:
            return left / weight
        left -= wanted[at]
        weight -= demands[at].weight
    return math.inf


@dataclass(frozen=True, slots=True)
class Seen:
    """What a member says of itself, which is not believed."""

    used: int
    """Units that it has used, counted from whenever on, modulo COUNTER."""
    waits: bool
    """Whether something waits for a grant."""


@dataclass(slots=True)
class _Member:
    weight: int
    used: int
    """As it was seen last."""
    granted: int = 0
    unused: float = 0.0
    """Units that it was granted and has not used, as far as they are remembered."""
    owed: float = 0.0
    """Units that it has used beyond what it was granted by then."""
    pace: float = 0.0
    rested: float = math.inf
    """Seconds since it last said that it waits."""
    uses_all: bool = False

    @property
    def waits(self) -> bool:
        """Whether it needs more than it is granted."""
        return self.uses_all or self.rested < REMEMBERED

    def see(self, seen: Seen, elapsed: float) -> float:
        """Take note of what it says: the units that count as used in `elapsed` seconds."""
        self.owed += (seen.used - self.used) % COUNTER
        self.used = seen.used
        may = self.unused + self.granted * elapsed
        counted = min(self.owed, may)
        self.uses_all = counted > NEARLY * may
        self.rested = 0.0 if seen.waits else self.rested + elapsed
        self.unused = min(may - counted, self.granted * SHORT_CREDIT)
        self.owed = min(self.owed - counted, self.granted * LARGEST)
        faded = self.pace * 0.5 ** (elapsed / FORGETTING)
        self.pace = max(counted / max(elapsed, PERIOD), faded)
        return counted


class SharedRate:
    """One rate of a group, divided among the members that live."""

    def __init__(self, rate: Rate, now: float) -> None:
        """Begin without credit, so that no restart is worth a burst."""
        self._rate = rate
        self._members: dict[str, _Member] = {}
        self._credit = 0.0
        self._divided = now
        self._is_changed = False
        """Whether there are other members or weights than at the last division."""
        self.is_settled = True
        """Whether the grants may stay until somebody waits."""

    @property
    def rate(self) -> Rate:
        """What is divided."""
        return self._rate

    def change(self, rate: Rate) -> None:
        """Divide another rate from the next division on; of the credit stays what that allows."""
        self._rate = rate
        self._credit = rate.limit_credit(self._credit)

    def join(self, name: str, weight: int, used: int) -> None:
        """Have a member that has used so many units by now, or one with another weight."""
        if (member := self._members.get(name)) is None:
            self._members[name] = _Member(weight, used)
        elif member.weight != weight:
            member.weight = weight
        else:
            return
        self._is_changed = True

    def leave(self, name: str) -> None:
        """Have one less: its share is the others'."""
        if self._members.pop(name, None) is not None:
            self._is_changed = True

    def divide(self, now: float, seen: Mapping[str, Seen]) -> Mapping[str, int]:
        """The units a second that each member is granted from now on.

        Args:
            now: Seconds.
            seen: What members say; of one that is missing nothing is known, and all is kept.
        """
        elapsed = max(now - self._divided, 1e-9)
        self._divided = now
        used = sum(
            member.see(seen[name], elapsed)
            for name, member in self._members.items()
            if name in seen
        )
        credit = self._credit + self._rate.average * elapsed - used
        self._credit = self._rate.limit_credit(credit)
        grants = self._divide(is_over=used > self._rate.average * elapsed)
        for name, granted in grants.items():
            self._members[name].granted = granted
        return grants

    def _divide(self, *, is_over: bool) -> Mapping[str, int]:
        """The grants; `is_over` says whether more than the rate was used."""
        members = self._members.values()
        is_new, self._is_changed = self._is_changed, False  # all begin with their shares
        demands = [Demand(each.weight, each.pace, each.waits or is_new) for each in members]
        self.is_settled = not is_over and not any(demand.waits for demand in demands)
        at_rest = is_new or self.is_settled
        rate = self._rate.average if at_rest else self._rate.at(self._credit)
        return dict(zip(self._members, divide(rate, demands), strict=True))
