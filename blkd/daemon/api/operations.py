# SPDX-License-Identifier: Apache-2.0
"""Calls that change something: each in a task of its own, which no caller can leave half done.

A caller waits a while for the end.  What takes longer goes on as an operation, which can be looked
at, waited for, and cancelled where nothing is left half done by that.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Final

import structlog

from blkd.control.daemon_models import Operation
from blkd.control.models import Problem
from blkd.control.problems import problem_of, refusal
from blkd.daemon.api.call_and_reply import Reply
from blkd.daemon.api.exports import Work
from blkd.errors import BlkdError, NoSuchOperation, RequestRefused

MOST_ENDED: Final = 128  # operations that are remembered after their end
MOST_RUNNING: Final = 256
CANCELLED: Final = Problem(title="Cancelled", status=HTTPStatus.CONFLICT, detail="it was cancelled")
THE_END: Final = Problem(
    title=HTTPStatus.SERVICE_UNAVAILABLE.phrase,
    status=HTTPStatus.SERVICE_UNAVAILABLE,
    detail="the daemon ends",
    hint="ask again once it is back: what was not done yet is not",
)

log = structlog.get_logger()

Doing = Callable[[Work], Awaitable[Reply]]


class Running:
    """One call that changes something: what it has come to.  Plays `Work`."""

    def __init__(self, number: str, call: str) -> None:
        self.id: Final = number
        self._call = call
        self._began = time.time()
        self._ended: float | None = None
        self._progress: float | None = None
        self._doing: str | None = None
        self._cancellable = 0
        self._cancelling = False
        self._task: asyncio.Task[None] | None = None
        self.done: Final = asyncio.Event()
        self.reply: Reply | None = None
        self.problem: Problem | None = None

    def report(self, progress: float | None, doing: str) -> None:
        """Say how far it has come."""
        self._progress = None if progress is None else min(max(progress, 0.0), 1.0)
        self._doing = doing

    @contextlib.contextmanager
    def may_be_cancelled(self) -> Iterator[None]:
        """Let a caller cancel it while the context lasts."""
        self._cancellable += 1
        try:
            yield
        finally:
            self._cancellable -= 1

    def show(self) -> Operation:
        """What there is to know of it; without its result while it goes on."""
        status = "running"
        if self.done.is_set():
            status = "done" if self.problem is None else "failed"
            status = "cancelled" if self.problem is CANCELLED else status
        return Operation(
            id=self.id,
            call=self._call,
            status=status,  # type: ignore[arg-type]  # one of the four
            began=self._began,
            ended=self._ended,
            progress=self._progress,
            doing=None if self.done.is_set() else self._doing,
            may_cancel=self._can_be_cancelled,
            result=None if self.reply is None else self.reply.content,
            problem=self.problem,
        )

    @property
    def _can_be_cancelled(self) -> bool:
        return self._cancellable > 0 and not self._cancelling and not self.done.is_set()

    def cancel(self) -> None:
        """Begin to cancel it.  Raises RequestRefused where that cannot be, or not any more."""
        if self.done.is_set():
            raise RequestRefused(f"operation {self.id} has ended")
        if self._cancelling:
            return
        if not self._can_be_cancelled or self._task is None:
            raise RequestRefused(
                f"operation {self.id} cannot be cancelled at present",
                hint="what it has begun must be brought to its end",
            )
        self._cancelling = True
        self._task.cancel()

    def end(self) -> None:
        """Cancel it, whatever it does: the daemon ends."""
        if self._task is not None:
            self._task.cancel()

    def begin(self, tasks: asyncio.TaskGroup, doing: Doing) -> None:
        """Carry it out in a task of `tasks`."""
        self._task = tasks.create_task(self._run(doing))

    async def _run(self, doing: Doing) -> None:
        try:
            self.reply = await doing(self)
        except asyncio.CancelledError:
            self.problem = CANCELLED if self._cancelling else THE_END
            if not self._cancelling:
                raise
        except BlkdError as error:
            log.info("call refused", call=self._call, reason=str(error))
            self.problem = problem_of(error)
        except Exception:  # the daemon goes on
            log.exception("call failed", call=self._call)
            self.problem = refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "see the log of blkd")
        finally:
            self._ended = time.time()
            self.done.set()


class Operations:
    """All that goes on, and the latest that have ended."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        """Carry out in `tasks`, which the caller cancels in the end."""
        self._tasks = tasks
        self._known: dict[str, Running] = {}
        self._prefix = f"{time.time_ns() // 1_000_000:x}"  # no daemon before this one had it
        self._numbers = itertools.count(1)

    def begin(self, call: str, doing: Doing) -> Running:
        """Begin to carry out a call.  Raises RequestRefused if too many are."""
        ended = [each for each in self._known.values() if each.done.is_set()]
        if len(self._known) - len(ended) >= MOST_RUNNING:
            raise RequestRefused(
                f"{MOST_RUNNING} calls are being carried out", hint="wait for some of them to end"
            )
        for old in ended[: max(0, len(ended) - MOST_ENDED)]:
            self.forget(old)
        running = Running(f"{self._prefix}-{next(self._numbers)}", call)
        self._known[running.id] = running
        running.begin(self._tasks, doing)
        return running

    def find(self, number: str) -> Running:
        """Find one by its id.  Raises NoSuchOperation."""
        try:
            return self._known[number]
        except KeyError:
            raise NoSuchOperation(
                f"there is no operation {number}",
                hint=f"the last {MOST_ENDED} that have ended are remembered",
            ) from None

    def forget(self, running: Running) -> None:
        """Remember no more of one whose caller has its answer."""
        self._known.pop(running.id, None)

    def end(self) -> None:
        """Cancel all that goes on, wherever it is: the daemon ends."""
        for running in self._known.values():
            running.end()

    def list(self) -> tuple[Operation, ...]:
        """All that are known, the oldest first; without their results."""
        return tuple(running.show() for running in self._known.values())


async def wait_for(running: Running, seconds: float) -> bool:
    """Wait for the end of `running`: whether it has ended within so many seconds."""
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await running.done.wait()
    else:
        await asyncio.sleep(0)  # what takes no time has ended then
    return running.done.is_set()
