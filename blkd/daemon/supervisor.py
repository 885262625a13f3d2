# SPDX-License-Identifier: Apache-2.0
"""The exports of a daemon, as its API calls them; plays `api.exports.Exports`."""

import asyncio
import contextlib
import errno
import fnmatch
import os
import secrets
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Final

import structlog

from blkd.control import models
from blkd.control.daemon_models import (
    AddExport,
    ChangeExport,
    ChangeResult,
    CreateImage,
    Event,
    ExportSummary,
    ExportView,
    ImageView,
    Logs,
    NewImage,
    Removed,
    Settings,
    entity_tag,
)
from blkd.daemon import image_files
from blkd.daemon.api.exports import Work
from blkd.daemon.daemon_config import DASHBOARD_SOCKET, DYNAMIC
from blkd.daemon.group_list import GroupList
from blkd.daemon.log_files import Logged
from blkd.daemon.managed_export import (
    ManagedExport,
    Surroundings,
    control_path,
    host_paths,
    socket_paths,
)
from blkd.daemon.observed import Observed
from blkd.daemon.plain_settings import group_of, kept_settings, read_settings, settable
from blkd.daemon.record import LATEST, OWN_USERS, ExportRecord, overlaid
from blkd.daemon.space_watch import SpaceWatch
from blkd.errors import (
    BlkdError,
    ConfigError,
    ExportChanged,
    ExportExists,
    NoSuchExport,
    RequestRefused,
    StateError,
)
from blkd.export.config import ExportConfig
from blkd.export.net_config import NetConfig
from blkd.host import unix_socket

FIND_LIMIT: Final = 2.0
"""Seconds to find the processes of an earlier daemon before anybody can call."""
FEATURES: Final = "features"
"""What a change names to have the newest features offered at the next start."""

log = structlog.get_logger()


class Supervisor:
    """The exports of one daemon; `load` reads what they were, `run` is their life."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._exports: dict[str, ManagedExport] = {}
        self._space = SpaceWatch(around.config.room, around.events)
        self._bad: dict[str, ConfigError] = {}
        """Records that are none, by name."""
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        """Of names, for those who add or remove."""
        self._promised: set[int] = set()
        """Users of exports that are being added."""
        self._tasks: asyncio.TaskGroup
        self._lives: dict[str, asyncio.Task[None]] = {}

    @property
    def groups(self) -> GroupList:
        """The groups that exports may be in."""
        return self._around.groups

    async def load(self) -> None:
        """Read the records.  Raises StateError."""
        await self.groups.load()
        for name, record in (await self._around.store.load()).items():
            if isinstance(record, ConfigError):
                self._bad[name] = record
                self._around.events.tell(
                    "record refused", export=name, level="error", reason=str(record)
                )
            else:
                self._exports[name] = ManagedExport(record, self._around)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the exports be what they are to be, while the context lasts; then leave them.

        Those that are served go on by themselves, unless `on_stop` says otherwise.
        """
        try:
            async with asyncio.TaskGroup() as self._tasks:
                following = self._tasks.create_task(self._follow())
                granting = self._tasks.create_task(self.groups.run())
                beginnings = [
                    self._tasks.create_task(self._begin(export))
                    for export in self._exports.values()
                ]
                if beginnings:  # one that does not answer is not waited for
                    await asyncio.wait(beginnings, timeout=FIND_LIMIT)
                try:
                    yield
                finally:
                    if self._around.config.on_stop == "stop":
                        await self._end_all()
                    for task in (following, granting, *beginnings, *self._lives.values()):
                        task.cancel()
        finally:
            for export in self._exports.values():
                export.release()

    async def _begin(self, export: ManagedExport) -> None:
        """Find the process of an export that an earlier daemon has known, or have one started."""
        await export.begin()
        self._live(export)
        if export.record.wanted == "stopped" and export.has_left:
            self._tasks.create_task(self._end_left(export))

    async def _end_left(self, export: ManagedExport) -> None:
        """End a process that is not wanted, before anybody who calls starts another one."""
        async with self._turn(export.name):
            if export.record.wanted == "stopped":
                await self._end(export)

    def _live(self, export: ManagedExport) -> None:
        """Let an export live its life, in a task of its own."""
        self._lives[export.name] = self._tasks.create_task(self._run(export))

    async def _run(self, export: ManagedExport) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(export))
                await export.run()
        except Exception:  # the others go on
            log.exception("an export is not looked after any more", export=export.name)

    async def _watch(self, export: ManagedExport) -> None:
        try:
            await self._space.follow(export)
        except Exception:  # the export goes on
            log.exception("the room for an image is not looked at any more", export=export.name)

    async def _end(self, export: ManagedExport) -> None:
        try:
            await export.end()
        except BlkdError as error:
            log.warning("export not ended", export=export.name, reason=str(error))

    async def _follow(self) -> None:
        try:
            await self._around.logs.follow()
        except (OSError, TimeoutError) as error:  # the exports go on
            log.error("logs of exports not followed", reason=str(error))  # noqa: TRY400

    async def _end_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for export in self._exports.values():
                tasks.create_task(self._end(export))

    # ---- asked ----

    def list(self) -> Sequence[ExportSummary]:
        """All exports, by name."""
        found = {name: self._summary(export) for name, export in self._exports.items()}
        found |= {name: self._refused(name, error) for name, error in self._bad.items()}
        return [found[name] for name in sorted(found)]

    async def get(self, name: str) -> ExportView:
        """All there is to know of an export."""
        if name in self._bad:
            return self._refused(name, self._bad[name])
        export = self._find(name)
        served = None
        if export.process is not None:
            with contextlib.suppress(BlkdError):
                served = await export.call("GET", models.EXPORT)
        return self._view(export, served)

    async def in_flight(self, name: str) -> object:
        """The requests in flight, as its process says them."""
        return await self._find(name).call("GET", models.INFLIGHT)

    async def stats(self, name: str) -> object:
        """The counters, as its process says them."""
        return await self._find(name).call("GET", models.STATS)

    async def observe(self) -> Sequence[Observed]:
        """All exports by name, without a question to their processes."""
        found = []
        for name in sorted({*self._exports, *self._bad}):
            if (export := self._exports.get(name)) is not None:
                found.append(self._observed(export))
            elif name in self._bad:
                found.append(Observed(name=name, device="blk", wanted="stopped", state="failed"))
            await asyncio.sleep(0)  # what hundreds have counted takes a moment to read
        return found

    def _observed(self, export: ManagedExport) -> Observed:
        life, record, process = export.life, export.record, export.process
        return Observed(
            name=record.name,
            device=record.device,
            wanted=record.wanted,
            state=export.state,
            restarts=life.restarts,
            since=process.since if process else None,
            image=str(record.settings.get("image", "")),
            described=export.described,
            space=self._space.of(record.name),
            figures=export.figures,
            group=group_of(record.device, record.settings) or "",
            limits=export.limits,
        )

    async def logs(self, name: str, lines: int) -> Logs:
        """The last events that it logged."""
        self._find(name)
        found = await self._around.logs.tail(name, lines)
        return Logs(name=name, events=tuple(one.event or {"text": one.line} for one in found))

    def events(self, since: int | None, *, follow: bool) -> AsyncIterator[Event]:
        """The events after the one with the id `since`, or those to come."""
        return self._around.events.after(since, follow=follow)

    def take_logged(self, logged: Logged) -> None:
        """Keep a line that the process of an export has logged as an event."""
        fields = dict(logged.event or {"text": logged.line})
        told = {key: fields.pop(key, None) for key in ("event", "level", "timestamp", "export")}
        event, level = told["event"] or "a line that is no event", told["level"] or "info"
        self._around.events.add(
            str(event),
            export=logged.export,
            level=str(level),
            fields=fields,
            at=logged.time,
            of=logged.export,
        )

    # ---- changed ----

    async def add(self, wanted: AddExport, work: Work) -> tuple[ExportView, bool]:
        """Keep an export, create its image, start it."""
        name = wanted.name
        async with self._turn(name):
            settings = kept_settings(wanted.device, name, wanted.settings)
            if (export := self._exports.get(name)) is not None:
                if (export.record.device, export.record.settings) != (wanted.device, settings):
                    raise ExportExists(
                        f"there is another export {name}",
                        hint=f"blkd show {name} tells its settings, blkd set changes them",
                    )
                return self._view(export), False
            if name in self._bad:
                raise ExportExists(f"there is a file for {name}: {self._bad[name]}")
            group = group_of(wanted.device, settings)
            with self._user_of_its_own() as user, self.groups.claimed(group):
                record = _record(wanted, settings, user)
                self._require_allowed(record)
                return await self._add(record, wanted, work), True

    async def _add(self, record: ExportRecord, wanted: AddExport, work: Work) -> ExportView:
        """Add a new export; nothing is left of it where that fails."""
        async with contextlib.AsyncExitStack() as undo:
            image = record.settings.get("image", "")
            if wanted.create is not None:
                await self._create(image, wanted.create, work)
                undo.push_async_callback(self._delete_quietly, image)
            export = ManagedExport(replace(record, wanted="stopped"), self._around, is_new=True)
            undo.push_async_callback(self._forget, export)
            await export.keep(lambda _: record)
            self._exports[record.name] = export
            self._around.events.tell("export added", export=record.name, device=record.device)
            self._live(export)
            if wanted.start:
                work.report(None, "starting")
                await export.start()
            undo.pop_all()
        return await self.get(record.name)

    async def change(
        self, name: str, wanted: ChangeExport, if_match: Sequence[str]
    ) -> ChangeResult:
        """Change settings; those of sockets at once, all others at the next start."""
        async with self._turn(name):
            export = self._find(name)
            record = export.record
            if if_match and entity_tag(record.device, record.settings) not in if_match:
                raise ExportChanged(f"the settings of {name} have changed", hint="read them again")
            newest = _wants_newest(wanted)
            given = {key: value for key, value in wanted.settings.items() if key != FEATURES}
            for key in given.keys() - settable(record.device):
                raise ConfigError(f"{key} is no setting of {name}")
            settings = kept_settings(record.device, name, overlaid(record.settings, given))

            def settled(record: ExportRecord) -> ExportRecord:
                record = record.change(settings, given)
                return record.unpin() if newest else record

            self._require_allowed(settled(record))
            before, after = record.effective, settled(record).effective
            names = {key for key in given if before.get(key) != after.get(key)}
            names |= {FEATURES} if newest else set()
            group = group_of(record.device, settings) if "group" in names else None
            with self.groups.claimed(group):
                applied = await export.change(settled, names) if names else set()
            return ChangeResult(
                applied=tuple(sorted(applied)),
                at_next_start=tuple(sorted(names - applied)),
                export=self._view(export),
            )

    async def remove(self, name: str, *, delete_image: bool) -> Removed:
        """Stop an export and forget it."""
        async with self._turn(name):
            if name in self._bad:
                raise RequestRefused(
                    f"{self._bad[name]}",
                    hint="mend or remove the file, and start blkd daemon again",
                )
            if (export := self._exports.get(name)) is None:
                return Removed(name=name, removed=False)
            image = export.record.settings.get("image")
            if delete_image:
                if image is None:
                    raise RequestRefused(f"{name} has no image")
                await image_files.require_deletable(image, self._around.config.images)
                await self._require_own(name, image)
            await _end_for_good(export)
            if delete_image:
                assert image is not None
                await image_files.delete(image, self._around.config.images)
            await self._forget(export)
            self._around.events.tell("export removed", export=name, image_deleted=delete_image)
            return Removed(name=name, removed=True, image_deleted=delete_image)

    async def start(self, name: str) -> ExportView:
        """Serve it, from now on."""
        async with self._turn(name):
            await self._find(name).start()
        return await self.get(name)

    async def stop(self, name: str) -> ExportView:
        """Serve it no more."""
        async with self._turn(name):
            await self._find(name).stop()
        return await self.get(name)

    async def kill(self, name: str) -> ExportView:
        """End its process at once."""
        export = self._find(name)
        await export.kill()
        return self._view(export)

    async def upgrade(self, name: str, work: Work) -> ExportView:
        """Go on with a process of the blkd that is installed now."""
        async with self._turn(name):
            export = self._find(name)
            work.report(None, "starting a launcher")
            await self._around.launchers.renew(export.process.pid if export.process else None)
            work.report(None, "handing the disk over")
            await export.upgrade()
        return await self.get(name)

    async def pause(self, name: str, deadline: float) -> object:
        """Fetch no more requests."""
        async with self._turn(name):
            return await self._find(name).pause(deadline)

    async def resume(self, name: str) -> ExportView:
        """End a pause."""
        async with self._turn(name):
            await self._find(name).resume()
        return await self.get(name)

    async def retry(self, name: str) -> object:
        """Begin held requests again."""
        async with self._turn(name):
            return await self._find(name).call("POST", models.RETRY)

    async def resize(self, name: str, size: int, *, force: bool) -> object:
        """Give a disk a size."""
        async with self._turn(name):
            body = models.ResizeExport(size, force)
            return await self._find(name).call("POST", models.RESIZE, body)

    # ---- images ----

    async def images(self) -> Sequence[ImageView]:
        """The images in the configured directories."""
        users: dict[str, tuple[str, ...]] = {}
        for name, export in sorted(self._exports.items()):
            if (image := export.record.settings.get("image")) is not None:
                users[image] = (*users.get(image, ()), name)
        return [
            ImageView(path=path, size=size, allocated=allocated, used_by=users.get(path, ()))
            for path, size, allocated in await image_files.images(self._around.config.images)
        ]

    async def create_image(self, wanted: CreateImage, work: Work) -> ImageView:
        """Make an image."""
        path = str(PurePath(self._around.config.images[0]) / wanted.path)
        await self._create(path, wanted, work)
        return next(image for image in await self.images() if image.path == path)

    async def _create(self, path: str, wanted: NewImage, work: Work) -> None:
        with work.may_be_cancelled():
            work.report(0.0, "creating the image")
            await image_files.create(
                path,
                self._around.config.images,
                wanted.size,
                preallocate=wanted.preallocate,
                report=lambda done: work.report(done, "creating the image"),
            )

    async def _delete_quietly(self, image: str) -> None:
        with contextlib.suppress(BlkdError):
            await image_files.delete(image, self._around.config.images)

    async def _require_own(self, name: str, image: str) -> None:
        """Raise RequestRefused if another export has the image as well, by whatever path."""
        users = {
            other: path
            for other, export in self._exports.items()
            if other != name and (path := export.record.settings.get("image")) is not None
        }
        if (user := await image_files.user_of(image, users)) is not None:
            raise RequestRefused(f"{image} is the image of {user} too")

    # ---- what may be ----

    @contextlib.contextmanager
    def _user_of_its_own(self) -> Iterator[int | None]:
        """The number of a user that no export has, nor gets while the context lasts.

        It is drawn by lot: a record that is refused may have any, and its process may live.
        """
        if self._around.config.user != DYNAMIC:
            yield None
            return
        taken = {export.record.user for export in self._exports.values()} | self._promised
        while (user := secrets.choice(OWN_USERS)) in taken:
            pass
        self._promised.add(user)
        try:
            yield user
        finally:
            self._promised.discard(user)

    def _require_allowed(self, record: ExportRecord) -> None:
        """Raise ConfigError on settings that reach beyond what the daemon's own settings allow.

        Where an image lies is looked at when it is opened.
        """
        config = self._around.config
        run = PurePath(config.run)
        settings = read_settings(record.device, record.name, record.effective, run)
        paths = [*socket_paths(settings), *host_paths(settings)]
        match settings:
            case NetConfig(tap=str(tap)) if not any(
                fnmatch.fnmatchcase(tap, pattern) for pattern in config.taps
            ):
                raise ConfigError(
                    f"the TAP {tap} is none that may be served",
                    hint="name it in `taps` of blkd.toml",
                )
            case ExportConfig(image=image) if not (image.startswith(("/", "null:", "faulty:"))):
                raise ConfigError(f"{image} is no absolute path")
        for path in paths:
            _require_beneath(PurePath(path), run)
        self._require_free(record.name, paths)
        if (length := len(os.fsencode(control_path(config, record.name)))) > unix_socket.MAX_PATH:
            raise ConfigError(
                f"the name {record.name} makes a socket's path of {length} bytes, more than the"
                f" {unix_socket.MAX_PATH} that the kernel allows",
                hint="take a shorter one, or a shorter directory `run`",
            )

    def _require_free(self, name: str, paths: Sequence[str]) -> None:
        """Raise ExportExists where another export has one of these sockets, served or not."""
        wanted = {PurePath(path) for path in paths}
        for other, export in self._exports.items():
            taken = set() if other == name else set(map(PurePath, export.claimed_sockets))
            for path in wanted & taken:
                raise ExportExists(f"{path} is a socket of {other}", hint="take another path")

    # ---- views ----

    def _summary(self, export: ManagedExport) -> ExportSummary:
        return ExportSummary(**self._common(export))

    def _view(self, export: ManagedExport, served: Any = None) -> ExportView:
        process = export.process
        return ExportView(
            **self._common(export),
            settings=export.record.settings,
            pending=export.record.pending,
            restarts=export.life.restarts,
            since=process.since if process else None,
            served=served,
        )

    def _common(self, export: ManagedExport) -> dict[str, Any]:
        life, process, record = export.life, export.process, export.record
        return {
            "name": record.name,
            "device": record.device,
            "wanted": record.wanted,
            "state": export.state,
            "reason": life.reason,
            "pid": process.pid if process else None,
            "image": record.settings.get("image"),
            "sockets": export.known_sockets,
        }

    def _refused(self, name: str, error: ConfigError) -> ExportView:
        """An export whose record is none."""
        return ExportView(
            name=name,
            device="blk",
            wanted="stopped",
            state="failed",
            reason=str(error),
            settings={},
        )

    # ---- small things ----

    def _find(self, name: str) -> ManagedExport:
        if name in self._bad:
            raise RequestRefused(str(self._bad[name]), hint=self._bad[name].hint)
        if (export := self._exports.get(name)) is None:
            raise NoSuchExport(f"there is no export {name}", hint="blkd ls tells those there are")
        return export

    @contextlib.asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """Be the one call that changes the export of this name, after those that came before."""
        turn = self._turns.setdefault(name, asyncio.Lock())
        async with turn:
            yield

    async def _forget(self, export: ManagedExport) -> None:
        """End what there is of an export, and keep nothing."""
        await export.end()
        export.forget_figures()
        await self._around.store.remove(export.name)
        self._exports.pop(export.name, None)
        self.groups.forget(export.name)
        if (life := self._lives.pop(export.name, None)) is not None:
            life.cancel()
        await self._around.logs.remove(export.name)


def _record(wanted: AddExport, settings: Settings, user: int | None) -> ExportRecord:
    """What is kept of an export that is new."""
    return ExportRecord(
        name=wanted.name,
        device=wanted.device,
        wanted="serving" if wanted.start else "stopped",
        settings=settings,
        pinned={},
        user=user,
    )


async def _end_for_good(export: ManagedExport) -> None:
    """Stop an export that is to be removed, also where there is no room to note that first."""
    try:
        await export.stop()
    except StateError as error:
        if getattr(error.__cause__, "errno", None) not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        await export.end()


def _wants_newest(wanted: ChangeExport) -> bool:
    """Whether a change is to offer the newest features.  Raises ConfigError on other words."""
    if FEATURES not in wanted.settings:
        return False
    if wanted.settings[FEATURES] != LATEST:
        raise ConfigError(f"features can be {LATEST!r}, not {wanted.settings[FEATURES]!r}")
    return True


def _require_beneath(path: PurePath, run: PurePath) -> None:
    """Raise ConfigError on a socket that does not lie where sockets of exports do."""
    inner = path.relative_to(run).parts if path.is_relative_to(run) else ()
    if not inner or ".." in inner or inner[0] in {"exports", "blkd.sock", DASHBOARD_SOCKET}:
        raise ConfigError(
            f"{path} is no place for a socket of an export",
            hint=f"sockets lie beneath {run}, but not in exports there",
        )
