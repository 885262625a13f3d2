# SPDX-License-Identifier: Apache-2.0
"""The groups of a daemon: their records, and who is in them; plays `api.groups.Groups`."""

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from blkd.control.daemon_models import (
    AddGroup,
    ChangeGroup,
    GroupMember,
    GroupView,
    Limits,
    MemberState,
    RemovedGroup,
    group_tag,
)
from blkd.daemon.event_list import EventList
from blkd.daemon.grants import Grants, lift
from blkd.daemon.group_limits import kept_limits, rates_of, shown_grants
from blkd.daemon.group_record import GroupRecord
from blkd.daemon.record_store import RecordStore
from blkd.errors import ConfigError, GroupChanged, GroupExists, NoSuchGroup, RequestRefused
from blkd.statistics.limits_page import LimitsPage

MENDING: Final = "mend or remove the file, and start blkd daemon again"


@dataclass(frozen=True, slots=True)
class Membership:
    """What there is of an export that its group, or its leaving one, is about."""

    group: str | None
    weight: int
    state: MemberState
    page: LimitsPage | None = None
    """Of the process that serves it, where that is `sharing`; None while it is being looked for."""
    wake: int | None = None
    """The eventfd by which the process says that it waits."""


class GroupList:
    """The groups of one daemon; `load` reads what they were, `run` is their life."""

    def __init__(self, store: RecordStore[GroupRecord], events: EventList) -> None:
        self._store = store
        self._events = events
        self._records: dict[str, GroupRecord] = {}
        self._bad: dict[str, ConfigError] = {}
        """Records that are none, by name."""
        self._memberships: dict[str, Membership] = {}
        """By export."""
        self._claims: list[str] = []
        """Groups of exports that are being added or changed."""
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._grants = Grants()

    async def load(self) -> None:
        """Read the records.  Raises StateError."""
        for name, record in (await self._store.load()).items():
            if isinstance(record, ConfigError):
                self._refuse(name, record)
                continue
            try:
                self._grants.limit(name, rates_of(record.limits))
            except ConfigError as error:
                wrong = f"the limits of {name} are no good: {error}"
                self._refuse(name, ConfigError(wrong, hint=MENDING))
            else:
                self._records[name] = record

    def _refuse(self, name: str, error: ConfigError) -> None:
        """Have a record that is none: its members are not limited by it."""
        self._bad[name] = error
        self._events.tell(
            "group record refused", export=None, level="error", group=name, reason=str(error)
        )

    async def run(self) -> None:
        """Grant the members what they may use, until this is cancelled."""
        try:
            await self._grants.run()
        finally:
            self._grants.close()

    # ---- asked ----

    def list(self) -> Sequence[GroupView]:
        """All groups, by name."""
        return [self._view(name) for name in sorted(self._records.keys() | self._bad.keys())]

    def get(self, name: str) -> GroupView:
        """One of them.  Raises NoSuchGroup."""
        self._require_known(name)
        return self._view(name)

    # ---- changed ----

    async def add(self, wanted: AddGroup) -> tuple[GroupView, bool]:
        """Keep a group, unless it is there already."""
        name, limits = wanted.name, kept_limits({}, wanted.limits)
        async with self._turn(name):
            if name in self._bad:
                raise GroupExists(f"there is a file for {name}: {self._bad[name]}")
            if (record := self._records.get(name)) is not None:
                if record.limits != limits:
                    raise GroupExists(
                        f"there is another group {name}",
                        hint=f"blkd group set {name} changes its limits",
                    )
                return self._view(name), False
            await self._keep(GroupRecord(name, limits))
            self._events.tell("group added", export=None, group=name)
            return self._view(name), True

    async def change(self, name: str, wanted: ChangeGroup, if_match: Sequence[str]) -> GroupView:
        """Change limits, at once."""
        async with self._turn(name):
            record = self._find(name)
            if if_match and group_tag(record.limits) not in if_match:
                raise GroupChanged(f"the limits of {name} have changed", hint="read them again")
            limits = kept_limits(record.limits, wanted.limits)
            if limits != record.limits:
                await self._keep(replace(record, limits=limits))
                self._events.tell("group changed", export=None, group=name)
            return self._view(name)

    async def remove(self, name: str) -> RemovedGroup:
        """Forget a group that has no members."""
        async with self._turn(name):
            if name in self._bad:
                raise RequestRefused(str(self._bad[name]), hint=MENDING)
            if (record := self._records.get(name)) is None:
                return RemovedGroup(name=name, removed=False)
            if members := self._members_of(name):
                raise RequestRefused(
                    f"{', '.join(members)} {'is' if len(members) == 1 else 'are'} in {name}",
                    hint=f"blkd set {members[0]} group= takes it out",
                )
            if name in self._claims:
                raise RequestRefused(f"an export is just being put into {name}")
            del self._records[name]  # nobody can join it from now on
            try:
                await self._store.remove(name)
            except BaseException:
                self._records[name] = record
                raise
            self._grants.drop(name)
            self._events.tell("group removed", export=None, group=name)
            return RemovedGroup(name=name, removed=True)

    async def _keep(self, record: GroupRecord) -> None:
        rates = rates_of(record.limits)
        await self._store.write(record)
        self._records[record.name] = record
        self._grants.limit(record.name, rates)

    # ---- who is in them ----

    @contextlib.contextmanager
    def claimed(self, name: str | None) -> Iterator[None]:
        """Have the group `name`, if that is one, stay while the context lasts.

        Raises ConfigError where there is none.
        """
        if name is None:
            yield
            return
        if name not in self._records:
            raise ConfigError(
                f"there is no group {name}", hint="blkd group ls tells those there are"
            )
        self._claims.append(name)
        try:
            yield
        finally:
            self._claims.remove(name)

    def place(self, export: str, membership: Membership) -> None:
        """Have an export in its group, as it is now, or in none.

        What the membership has of a process is borrowed until the next call for that export.
        """
        self._memberships[export] = membership
        group, page = membership.group, membership.page
        if group in self._records and membership.state == "sharing":
            self._grants.admit(export, group, membership.weight, page, membership.wake)
        else:
            self._grants.dismiss(export)
            if page is not None:
                lift(page)

    def forget(self, export: str) -> None:
        """Have one export less."""
        self._grants.dismiss(export)
        self._memberships.pop(export, None)

    def _members_of(self, name: str) -> Sequence[str]:
        return sorted(export for export, each in self._memberships.items() if each.group == name)

    # ---- small things ----

    def _view(self, name: str) -> GroupView:
        bad = self._bad.get(name)
        limits: Limits = {} if bad is not None else self._records[name].limits
        members = [(export, self._memberships[export]) for export in self._members_of(name)]
        return GroupView(
            name=name,
            limits=limits,
            members=tuple(
                GroupMember(
                    export=export,
                    weight=each.weight,
                    state=each.state,
                    granted=shown_grants(self._grants.granted(export)),
                )
                for export, each in members
            ),
            reason=None if bad is None else str(bad),
        )

    def _require_known(self, name: str) -> None:
        if name not in self._records and name not in self._bad:
            raise NoSuchGroup(
                f"there is no group {name}", hint="blkd group ls tells those there are"
            )

    def _find(self, name: str) -> GroupRecord:
        self._require_known(name)
        if name in self._bad:
            raise RequestRefused(str(self._bad[name]), hint=self._bad[name].hint)
        return self._records[name]

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Be the one call that changes the group of this name, after those that came before."""
        turn = self._turns.setdefault(name, asyncio.Lock())
        async with turn:
            yield
