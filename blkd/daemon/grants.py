# SPDX-License-Identifier: Apache-2.0
"""What the members of groups are granted, written into the pages that their processes read.

While a member waits for more, the rates of its group are divided anew every `sharing.PERIOD`; else
nothing is done until the process of one signals its eventfd.  A process may signal without end and
write anything into its page: that costs one division a period, and a number that is not believed.
"""

import asyncio
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from blkd.daemon.sharing import PERIOD, Rate, Seen, SharedRate
from blkd.statistics.limits_page import SECOND, Dimension, LimitsPage, Line

Rates = Mapping[Dimension, Rate]
"""Of what is limited, in units a second."""

NO_LIMIT: Final = Line(0, 0, 0)


@dataclass(slots=True)
class _Member:
    """An export that a process serves, in a group."""

    group: str
    page: LimitsPage | None
    """None of one that may live, and keeps what an earlier daemon has granted it."""
    wake: int | None
    """An eventfd, borrowed."""
    lines: dict[Dimension, Line] = field(default_factory=dict)
    waits: dict[Dimension, int] = field(default_factory=dict)
    """How often it had to wait, as it was seen last."""

    def see(self, dimension: Dimension) -> Seen:
        """What it says of itself; one that cannot be asked is taken to need its share."""
        if self.page is None:
            return Seen(0, waits=True)
        demand = self.page.demand(dimension)
        had_to_wait = demand.waits != self.waits.get(dimension, demand.waits)
        self.waits[dimension] = demand.waits
        return Seen(demand.used, waits=demand.waiting or had_to_wait)

    def begin(self, dimension: Dimension, now: int) -> int:
        """Have a line, that of an earlier daemon or process if it can be: the units used so far."""
        if (page := self.page) is None:
            return 0
        if dimension not in self.lines:
            found = page.granted(dimension, now)
            self.lines[dimension] = found or page.first_line(dimension, 1, now)
        return page.demand(dimension).used

    def grant(self, dimension: Dimension, rate: int, now: int) -> None:
        """Let it use so many units a second from now on."""
        if self.page is not None:
            line = self.lines[dimension] = self.lines[dimension].bent(rate, now)
            self.page.grant(dimension, line)

    def lift(self, dimension: Dimension) -> None:
        """Let it use any number of units."""
        self.lines.pop(dimension, None)
        if self.page is not None:
            self.page.grant(dimension, NO_LIMIT)


class _Group:
    """What the members of one group share."""

    def __init__(self, rates: Rates, now: int) -> None:
        self._rates = {each: SharedRate(rate, now / SECOND) for each, rate in rates.items()}
        self.members: dict[str, _Member] = {}
        self.weights: dict[str, int] = {}
        self.is_busy = False
        """Whether the grants have to be looked at again in a while."""

    def change(self, rates: Rates, now: int) -> None:
        """Share other rates: of what is limited as before, credit stays."""
        for dimension in self._rates.keys() - rates.keys():
            del self._rates[dimension]
            for member in self.members.values():
                member.lift(dimension)
        for dimension, rate in rates.items():
            if (shared := self._rates.get(dimension)) is not None:
                shared.change(rate)
                continue
            shared = self._rates[dimension] = SharedRate(rate, now / SECOND)
            for name, member in self.members.items():
                shared.join(name, self.weights[name], member.begin(dimension, now))
        self.divide(now)

    def admit(self, name: str, weight: int, member: _Member, now: int) -> None:
        """Have one more member, or one with another page, eventfd or weight."""
        before = self.members.get(name)
        self.members[name], self.weights[name] = member, weight
        for dimension in Dimension:
            if (shared := self._rates.get(dimension)) is None:
                member.lift(dimension)
                continue
            if before is not None and before.page is not member.page:
                shared.leave(name)
            shared.join(name, weight, member.begin(dimension, now))
        self.divide(now)

    def dismiss(self, name: str, now: int) -> None:
        """Have one less."""
        del self.members[name], self.weights[name]
        for shared in self._rates.values():
            shared.leave(name)
        self.divide(now)

    def divide(self, now: int) -> None:
        """Grant each member what it may use from now on."""
        for dimension, shared in self._rates.items():
            seen = {name: member.see(dimension) for name, member in self.members.items()}
            for name, granted in shared.divide(now / SECOND, seen).items():
                self.members[name].grant(dimension, granted, now)
        is_settled = all(shared.is_settled for shared in self._rates.values())
        can_signal = all(member.wake is not None for member in self.members.values())
        self.is_busy = bool(self.members) and not (is_settled and can_signal)


def lift(page: LimitsPage) -> None:
    """Have a process that is in no group limited by none."""
    for dimension in Dimension:
        page.grant(dimension, NO_LIMIT)


class Grants:
    """The grants of all groups; `run` looks after them."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._members: dict[str, _Member] = {}
        self._signals = select.epoll()
        """Ready at each signal, which stays in its eventfd: to read one could wait for ever."""
        self._names: dict[int, str] = {}
        """Whose eventfd each is."""
        self._news = asyncio.Event()

    def close(self) -> None:
        """Look after nothing any more; what was granted stays so."""
        self._groups.clear()
        self._members.clear()
        self._names.clear()
        self._signals.close()

    # ---- groups ----

    def limit(self, group: str, rates: Rates) -> None:
        """Have a group, or have it share other rates."""
        now = time.monotonic_ns()
        if (found := self._groups.get(group)) is None:
            self._groups[group] = _Group(rates, now)
        else:
            found.change(rates, now)
            self._news.set()

    def drop(self, group: str) -> None:
        """Have one group less, which has no members."""
        self._groups.pop(group, None)

    def granted(self, export: str) -> Mapping[Dimension, int]:
        """The units a second that an export may use; empty where it is in no group."""
        member = self._members.get(export)
        return {} if member is None else {each: line.rate for each, line in member.lines.items()}

    # ---- members ----

    def admit(
        self, export: str, group: str, weight: int, page: LimitsPage | None, wake: int | None
    ) -> None:
        """Have an export in a group that there is, or have it there with another weight.

        Args:
            export: Its name.
            group: That of the group.
            weight: Of its share.
            page: Of the process that serves it, borrowed until `dismiss`; None where one may live
                that cannot be reached yet: it keeps its share.
            wake: The eventfd that the process signals, likewise.
        """
        if group not in self._groups:  # nothing is granted any more
            return
        now = time.monotonic_ns()
        before = self._members.get(export)
        if before is not None and before.group != group:
            self._leave(export, before, now)
            before = None
        self._unwatch(export)
        is_same = before is not None and before.page is page
        member = before if before is not None and is_same else _Member(group, page, wake)
        member.wake = wake
        self._members[export] = member
        self._groups[group].admit(export, weight, member, now)
        if wake is not None:
            self._names[wake] = export
            self._signals.register(wake, select.EPOLLIN | select.EPOLLET)
        self._news.set()

    def dismiss(self, export: str) -> None:
        """Have an export in no group; what its page grants it stays there."""
        if (member := self._members.pop(export, None)) is not None:
            self._unwatch_fd(member.wake)
            self._leave(export, member, time.monotonic_ns())

    def _leave(self, export: str, member: _Member, now: int) -> None:
        self._groups[member.group].dismiss(export, now)
        self._news.set()

    def _unwatch(self, export: str) -> None:
        if (member := self._members.get(export)) is not None:
            self._unwatch_fd(member.wake)

    def _unwatch_fd(self, wake: int | None) -> None:
        if wake is not None and self._names.pop(wake, None) is not None:
            self._signals.unregister(wake)

    # ---- their life ----

    async def run(self) -> None:
        """Divide what has to be divided, until this is cancelled."""
        while True:
            for fd, _ in self._signals.poll(0):
                if (export := self._names.get(fd)) is not None:
                    self._groups[self._members[export].group].is_busy = True
            busy = [group for group in self._groups.values() if group.is_busy]
            if not busy:
                await self._signal()
                continue
            for group in busy:
                group.divide(time.monotonic_ns())
            await asyncio.sleep(PERIOD)

    async def _signal(self) -> None:
        """Wait until a process signals, or something has changed: without a limit."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._signals.fileno(), self._news.set)
        try:
            await self._news.wait()
        finally:
            loop.remove_reader(self._signals.fileno())
            self._news.clear()
