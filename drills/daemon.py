# SPDX-License-Identifier: Apache-2.0
"""One daemon with several disks under load, of which anything is killed at any moment.

Supervisor, launcher and the processes of exports die alone and together, also in the middle of
an upgrade and while a disk is paused.  The supervisor is started again each time, and all else is
to come back by itself.
"""

import asyncio
import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import structlog

from drills import reconnecting
from drills.ledger import BLOCK
from drills.outcome import Outcome
from drills.reconnecting import ReconnectingLoad
from drills.upgrade import MILLISECONDS, summary
from harness.host import HostDaemon, Refused

DISKS: Final = 4
SLOW: Final = 2
"""Of so many some requests are slow, so that each death finds some, and in a disorder."""
RULES: Final = "delay=20ms@write/5,delay=40ms@read/11,short@any/17"
RATES: Final = ("iops=3000", "iops=800,burst-iops=4000,burst-length=2s", "bps=8M")
"""What disks may do, changed now and then: so that each death finds some that wait for it."""
GROWTH: Final = 1 << 20  # bytes, each time
SERVE_LIMIT: Final = 20.0
"""Seconds until every disk is served again: twice the longest delay of a start."""
LONGEST_PEACE: Final = 0.3  # seconds from one kill to the next, once all is served
LONGEST_CALL: Final = 0.6  # seconds into a call, at the most, until something is killed
CALL_LIMIT: Final = 60.0
GONE_LIMIT: Final = 15.0  # seconds until processes and descriptors of what was removed are gone
HASTE: Final = 0.3  # the share of kills that do not wait until all is served

log = structlog.get_logger()


async def drill(rounds: int, *, packed: bool = False) -> Outcome:
    """Kill `rounds` times, each time one process or several."""
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        run = Run(Path(folder), packed=packed)
        await asyncio.to_thread(run.drill, rounds)
    name = f"daemon, {'packed' if packed else 'split'} rings"
    return Outcome(drill=name, rounds=rounds, errors=run.errors, figures=run.figures)


class Run:
    """A daemon, its disks, and what becomes of them."""

    def __init__(self, folder: Path, *, packed: bool) -> None:
        self._folder, self._packed = folder, packed
        self._chance = random.Random(0)  # noqa: S311 - the same plan each time
        self._host: HostDaemon
        self._loads: dict[str, ReconnectingLoad] = {}
        self._sizes: dict[str, int] = {}
        self._is_whole = False
        """Whether the supervisor lives, and has had all of its exports served."""
        self._hasty = 0
        """How many kills in a row did not wait until all was served."""
        self._waits: list[float] = []
        self._counts: Counter[str] = Counter()
        self._kinds: Mapping[str, tuple[int, Callable[[], None]]] = {
            "supervisor": (4, self._kill_supervisor),
            "launcher": (2, self._kill_launcher),
            "export": (5, self._kill_export),
            "several at once": (4, self._kill_several),
            "in an upgrade": (3, self._kill_in_upgrade),
            "in a pause": (1, self._kill_in_pause),
        }
        self.errors = 0
        self.figures: dict[str, int | float] = {}

    def drill(self, rounds: int) -> None:
        """Do all of it, and note what was seen."""
        with HostDaemon(self._folder) as self._host:
            self._host.ready()
            descriptors = self._descriptors()
            try:
                self._add_disks()
                for _ in range(rounds):
                    self._do_round()
                self._settle()
            finally:
                self._stop_loads()
            self._end(descriptors)
        self._expect(not list(processes_of(self._folder)), "a process is left")
        self._summarise()

    def _add_disks(self) -> None:
        for number in range(DISKS):
            name = f"disk-{number}"
            path = self._host.image(f"{name}.img", reconnecting.BYTES)
            image = f"faulty:{RULES}:{path}" if number < SLOW else str(path)
            limit = RATES[number % len(RATES)]
            self._host.add(name, image, queues=reconnecting.QUEUES, limit=limit, on_enospc="hold")
            self._sizes[name] = reconnecting.BYTES
            load = ReconnectingLoad(self._host.run / f"{name}.sock", number, lambda: self._is_whole)
            self._loads[name] = load.start(packed=self._packed)
        self._settle()

    def _do_round(self) -> None:
        """Kill something at some moment, and have all served again, mostly."""
        kinds = list(self._kinds)
        weights = [weight for weight, _ in self._kinds.values()]
        kind = self._chance.choices(kinds, weights)[0]
        self._change_something()
        time.sleep(self._chance.uniform(0, LONGEST_PEACE))
        self._counts[f"kills: {kind}"] += 1
        log.info("kill", kind=kind)
        self._kinds[kind][1]()
        if self._chance.random() < HASTE and self._hasty < 2:  # noqa: PLR2004 - never for long
            self._hasty += 1
            self._is_whole = False
        else:
            self._settle()

    # ---- what is killed ----

    def _kill_supervisor(self) -> None:
        self._is_whole = False
        self._host.crash()
        time.sleep(self._chance.choice((0, 0, self._chance.uniform(0, LONGEST_PEACE))))
        self._host.begin_again()
        if self._chance.random() < HASTE:  # as one that only begins
            time.sleep(self._chance.uniform(0, 1.0))
            self._host.crash()
            self._host.begin_again()
        self._host.ready()

    def _kill_launcher(self) -> None:
        pids = children(self._host.process.process.pid)
        if pids:
            kill(self._chance.choice(pids))

    def _kill_export(self) -> None:
        if pids := list(self._pids().values()):
            kill(self._chance.choice(pids))

    def _kill_several(self) -> None:
        pids = list(self._pids().values())
        doomed = self._chance.sample(pids, self._chance.randint(0, len(pids)))
        if self._chance.random() < 0.5:  # noqa: PLR2004 - half of them
            doomed += children(self._host.process.process.pid)
        with_supervisor = self._chance.random() < 0.5  # noqa: PLR2004 - half of them
        if with_supervisor:
            self._is_whole = False
        for pid in doomed:
            kill(pid)
        if with_supervisor:
            self._kill_supervisor()

    def _kill_in_upgrade(self) -> None:
        """Kill who has a part in an upgrade, at some moment of it; the disk is served after all."""
        name = self._chance.choice(list(self._loads))
        before = self._pids().get(name)
        call = threading.Thread(target=self._try, args=("POST", f"/v1/exports/{name}/upgrade"))
        call.start()
        time.sleep(self._chance.uniform(0, LONGEST_CALL))
        match self._chance.choice(("supervisor", "launcher", "export")):
            case "supervisor":
                self._kill_supervisor()
            case "launcher":
                self._kill_launcher()
            case "export" if before is not None:
                kill(before)
        call.join(CALL_LIMIT)
        self._expect(not call.is_alive(), f"the upgrade of {name} does not end")

    def _kill_in_pause(self) -> None:
        """Kill the supervisor while a disk is paused: the next one knows that it is."""
        self._settle()
        name = self._chance.choice(list(self._loads))
        self._do("POST", f"/v1/exports/{name}/pause", {"deadline": 5})
        self._kill_supervisor()
        self._expect(self._comes_to(name, "paused"), f"{name} is not known to be paused")
        self._do("POST", f"/v1/exports/{name}/resume")

    # ---- what is asked ----

    def _change_something(self) -> None:
        """Now and then, while all is served: an upgrade, a pause, another size or rate."""
        if not self._is_whole:
            return
        name = self._chance.choice(list(self._loads))
        match self._chance.choice(("nothing", "nothing", "upgrade", "pause", "resize", "limit")):
            case "upgrade":
                self._do("POST", f"/v1/exports/{name}/upgrade")
                self._counts["upgrades"] += 1
            case "pause":
                self._do("POST", f"/v1/exports/{name}/pause", {"deadline": 5})
                self._do("POST", f"/v1/exports/{name}/resume")
                self._counts["pauses"] += 1
            case "resize":
                self._sizes[name] += GROWTH
                self._do("POST", f"/v1/exports/{name}/resize", {"size": self._sizes[name]})
                self._counts["resizes"] += 1
            case "limit":
                limit = self._chance.choice(RATES)
                self._do("PATCH", f"/v1/exports/{name}", {"settings": {"limit": limit}})
                self._counts["limits"] += 1

    def _do(self, method: str, target: str, body: object = None) -> None:
        """Call what is to succeed."""
        try:
            self._host.call(method, target, body, CALL_LIMIT)
        except (OSError, Refused) as error:
            self._expect(False, f"{method} {target}: {error}")

    def _try(self, method: str, target: str) -> None:
        """Call what may fail, as the daemon or the export is killed meanwhile."""
        with contextlib.suppress(OSError, ValueError, Refused, HTTPException):
            self._host.call(method, target, wait=CALL_LIMIT)

    # ---- what is seen ----

    def _settle(self) -> None:
        """Have every disk answer requests that are sent from now on; note how long that takes."""
        began = time.monotonic()
        for name, load in self._loads.items():
            left = began + SERVE_LIMIT - time.monotonic()
            if not load.await_turns(left):
                self._expect(False, f"{name} is not served again: {load.failure!r}")
                raise AssertionError(self._state())
        for name in self._loads:
            self._expect(self._comes_to(name, "serving"), f"{name} is not known to be served")
        self._waits.append((time.monotonic() - began) * MILLISECONDS)
        self._hasty, self._is_whole = 0, True

    def _comes_to(self, name: str, state: str) -> bool:
        """Whether the daemon says soon that an export is in this state."""
        deadline = time.monotonic() + SERVE_LIMIT
        while self._state()[name]["state"] != state:
            if time.monotonic() > deadline:
                return False
        return True

    def _state(self) -> dict[str, Any]:
        return {export["name"]: export for export in self._host.exports()}

    def _pids(self) -> dict[str, int]:
        """The processes of those that have one."""
        found = {name: export["pid"] for name, export in self._state().items()}
        return {name: pid for name, pid in found.items() if pid is not None}

    def _descriptors(self) -> int:
        """How many the supervisor has."""
        return sum(1 for _ in Path(f"/proc/{self._host.process.process.pid}/fd").iterdir())

    def _stop_loads(self) -> None:
        for name, load in self._loads.items():
            try:
                load.stop()
            except Exception as error:  # noqa: BLE001 - counted, as are those of the others
                load.failure = load.failure or error
            self._expect(load.failure is None, f"{name}: {load.failure!r}")

    def _end(self, descriptors: int) -> None:
        """Look at the images, and at what is left once the exports are removed."""
        for name, load in self._loads.items():
            self._expect(load.capacity == self._sizes[name], f"{name} has not its size")
            self._count_wrong(name, load)
            self._do("DELETE", f"/v1/exports/{name}")
        deadline = time.monotonic() + GONE_LIMIT
        while self._descriptors() > descriptors and time.monotonic() < deadline:
            pass
        self._expect(self._descriptors() <= descriptors, "descriptors are left")
        self._expect(self._host.process.end(timeout=GONE_LIMIT) == 0, "the daemon does not end")
        while list(processes_of(self._folder)) and time.monotonic() < deadline:
            pass

    def _count_wrong(self, name: str, load: ReconnectingLoad) -> None:
        """Look at the image itself, beside what its front end has seen."""
        with (self._host.images / f"{name}.img").open("rb") as image:
            for block in range(reconnecting.BYTES // BLOCK):
                is_right = image.read(BLOCK) == load.expected(block)
                self._expect(is_right, f"block {block} of {name} is not as it was written")
        wrong = {"wrong": load.wrong, "failed": load.failed, "refused": load.refusals}
        for what, count in wrong.items():
            self.errors += count
            if count:
                log.error("seen by a front end", disk=name, what=what, count=count)

    def _expect(self, is_so: bool, otherwise: str) -> None:  # noqa: FBT001 - what is checked
        if not is_so:
            self.errors += 1
            log.error(otherwise)

    def _summarise(self) -> None:
        loads = self._loads.values()
        self.figures = {
            "kills": sum(n for what, n in self._counts.items() if what.startswith("kills: ")),
            **dict(sorted(self._counts.items())),
            "reconnections": sum(load.reconnections for load in loads),
            "requests": sum(load.requests for load in loads),
            "bytes verified": sum(load.blocks_read for load in loads) * BLOCK,
            **summary("all served again", self._waits),
        }


def kill(pid: int) -> None:
    """SIGKILL, if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def processes_of(folder: Path) -> Iterator[int]:
    """Processes that write their log beneath a folder: those of a daemon there."""
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and int(place.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (place / "fd/2").readlink().is_relative_to(folder):
                    yield int(place.name)
