# SPDX-License-Identifier: Apache-2.0
"""Exports of a daemon that exist in memory only: what the API is tested with."""

import asyncio
import itertools
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath

import msgspec

from blkd.control.daemon_models import (
    ChangeResult,
    Event,
    ExportSummary,
    ExportView,
    GroupView,
    ImageView,
    Logs,
    Removed,
    RemovedGroup,
    entity_tag,
    group_tag,
)
from blkd.daemon.api.application import daemon_api
from blkd.daemon.api.authorisation import Authorisation
from blkd.daemon.group_limits import kept_limits
from blkd.daemon.observed import Observed
from blkd.daemon.plain_settings import kept_settings
from blkd.errors import (
    ConfigError,
    ExportChanged,
    ExportExists,
    GroupChanged,
    GroupExists,
    NoSuchExport,
    NoSuchGroup,
    RequestRefused,
)
from blkd.host import unix_socket
from blkd.statistics.figures import Figures

RUN = PurePath("/run/blkd")


@dataclass
class PlayedGroups:
    """Plays `Groups`: each call does at once what it says."""

    views: dict[str, GroupView] = field(default_factory=dict)

    def list(self):
        return [view for _, view in sorted(self.views.items())]

    def get(self, name):
        if name not in self.views:
            raise NoSuchGroup(f"there is no group {name!r}")
        return self.views[name]

    async def add(self, wanted):
        limits = kept_limits({}, wanted.limits)
        if (old := self.views.get(wanted.name)) is not None:
            if old.limits != limits:
                raise GroupExists(f"there is another {wanted.name}", hint="take another name")
            return old, False
        self.views[wanted.name] = GroupView(name=wanted.name, limits=limits)
        return self.views[wanted.name], True

    async def change(self, name, wanted, if_match):
        view = self.get(name)
        if if_match and group_tag(view.limits) not in if_match:
            raise GroupChanged(f"{name} has other limits by now", hint="look again")
        limits = kept_limits(view.limits, wanted.limits)
        self.views[name] = GroupView(name=name, limits=limits)
        return self.views[name]

    async def remove(self, name):
        return RemovedGroup(name=name, removed=self.views.pop(name, None) is not None)


@dataclass
class PlayedExports:
    """Plays `Exports`: each call does at once what it says, or waits for `gate`."""

    views: dict[str, ExportView] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    groups: PlayedGroups = field(default_factory=PlayedGroups)
    calls: list[tuple] = field(default_factory=list)
    ended: list[tuple] = field(default_factory=list)
    """Calls that were carried out to their end."""
    gate: asyncio.Event | None = None
    """What a call on an export waits for, if there is one."""
    failure: Exception | None = None
    observations: int = 0
    log: list[Event] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    ids: itertools.count = field(default_factory=lambda: itertools.count(1))

    def happen(self, event, export=None):
        self.log.append(Event(id=next(self.ids), time=1.0, event=event, export=export))
        self.more.set()
        self.more = asyncio.Event()

    async def _do(self, *call):
        self.calls.append(call)
        async with self.locks[call[1]]:
            if self.gate is not None:
                await self.gate.wait()
            if self.failure is not None:
                raise self.failure
            self.ended.append(call)

    def _find(self, name):
        if name not in self.views:
            raise NoSuchExport(f"there is no export {name!r}")
        return self.views[name]

    def _set(self, name, **fields):
        self.views[name] = msgspec.structs.replace(self._find(name), **fields)
        return self.views[name]

    def list(self):
        names = ExportSummary.__struct_fields__
        return [
            ExportSummary(**{name: getattr(view, name) for name in names})
            for _, view in sorted(self.views.items())
        ]

    async def get(self, name):
        return self._find(name)

    async def add(self, wanted, work):
        settings = kept_settings(wanted.device, wanted.name, wanted.settings)
        if (old := self.views.get(wanted.name)) is not None:
            if (old.device, old.settings) != (wanted.device, settings):
                raise ExportExists(f"there is another {wanted.name}", hint="take another name")
            return old, False
        work.report(0.5, "creating the image")
        with work.may_be_cancelled():
            await self._do("add", wanted.name)
        self.views[wanted.name] = ExportView(
            name=wanted.name,
            device=wanted.device,
            wanted="serving" if wanted.start else "stopped",
            state="serving" if wanted.start else "stopped",
            settings=settings,
            sockets=(str(RUN / f"{wanted.name}.sock"),),
            pid=1234 if wanted.start else None,
        )
        self.happen("export added", wanted.name)
        return self.views[wanted.name], True

    async def change(self, name, wanted, if_match):
        view = self._find(name)
        await self._do("change", name)
        if if_match and entity_tag(view.device, view.settings) not in if_match:
            raise ExportChanged(f"{name} has other settings by now", hint="look again")
        merged = {**view.settings, **wanted.settings}
        merged = {field: value for field, value in merged.items() if value is not None}
        settings = kept_settings(view.device, name, merged)
        changed = tuple(sorted(wanted.settings))
        return ChangeResult(
            applied=(), at_next_start=changed, export=self._set(name, settings=settings)
        )

    async def remove(self, name, *, delete_image):
        await self._do("remove", name, delete_image)
        was = self.views.pop(name, None)
        return Removed(name=name, removed=was is not None, image_deleted=delete_image)

    async def start(self, name):
        self._find(name)
        await self._do("start", name)
        return self._set(name, state="serving", wanted="serving", pid=1234)

    async def stop(self, name):
        self._find(name)
        await self._do("stop", name)
        return self._set(name, state="stopped", wanted="stopped", pid=None)

    async def kill(self, name):
        return self._find(name)

    async def upgrade(self, name, work):
        self._find(name)
        work.report(None, "starting the new process")
        await self._do("upgrade", name)
        return self._find(name)

    async def pause(self, name, deadline):
        self._find(name)
        await self._do("pause", name, deadline)
        self._set(name, state="paused")
        return {"paused": True, "drained": True, "in_flight": 0}

    async def resume(self, name):
        self._find(name)
        await self._do("resume", name)
        return self._set(name, state="serving")

    async def retry(self, name):
        await self._do("retry", name)
        return {"retried": 2, "held": 0, "reason": None}

    async def resize(self, name, size, *, force):
        if self._find(name).device != "blk":
            raise RequestRefused("only a disk has a size")
        await self._do("resize", name, size, force)
        return {"size": size, "previous": 0, "announced": "not-connected"}

    async def in_flight(self, name):
        return {"name": self._find(name).name, "requests": []}

    async def stats(self, name):
        return {"name": self._find(name).name, "rings": []}

    async def observe(self):
        self.observations += 1
        if self.gate is not None:
            await self.gate.wait()
        return [
            Observed(
                name=view.name,
                device=view.device,
                wanted=view.wanted,
                state=view.state,
                figures=self.figures.get(view.name),
            )
            for _, view in sorted(self.views.items())
        ]

    async def logs(self, name, lines):
        events = ({"event": "serving"}, {"text": "Traceback"})
        return Logs(name=self._find(name).name, events=events[-lines:])

    async def images(self):
        return [ImageView(path="/images/a.img", size=512, allocated=0)]

    async def create_image(self, wanted, work):
        if wanted.size % 512:
            raise ConfigError(f"{wanted.size} bytes are no sectors")
        with work.may_be_cancelled():
            await self._do("create_image", wanted.path)
        return ImageView(path=wanted.path, size=wanted.size, allocated=0)

    async def events(self, since, *, follow):
        last = self.log[-1].id if since is None and self.log else (since or 0)
        while True:
            for event in [each for each in self.log if each.id > last]:
                last = event.id
                yield event
            if not follow:
                return
            if not self.log or self.log[-1].id <= last:
                await self.more.wait()


@contextmanager
def served_in_thread(path, authorisation=None, exports=None):
    """Answer the API at `path` from a thread of its own: what plays the exports."""
    started = threading.Event()
    found = {}

    async def serve():
        found["exports"] = exports or PlayedExports()
        found["loop"] = asyncio.get_running_loop()
        found["stop"] = asyncio.Event()
        with unix_socket.listen(str(path), 0o600) as listener:
            allowed = authorisation or Authorisation()
            async with daemon_api(found["exports"], listener, allowed):
                started.set()
                await found["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(10)
        yield found["exports"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join()
