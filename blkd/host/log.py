# SPDX-License-Identifier: Apache-2.0
"""Events to standard error: lines for people on a terminal, else one JSON object each.

A thread writes the lines.  Whoever logs waits a moment for it, so that a line comes before what
follows from its event; but once nobody reads, not again before all is written.  Of too many lines
that wait for a reader the oldest are dropped and counted.  Of one event, of one export or ring if
it has to do with one, there are ten in ten seconds at the most; then the last of those that were
held back comes, with the number of the others.  `BLKD_LOG=debug` in the environment shows every
message of the protocol as well, and holds nothing back.
"""

import atexit
import collections
import contextlib
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

STDERR: Final = 2
QUEUE_BYTES: Final = 256 * 1024  # of lines that wait to be written
PATIENCE: Final = 0.1  # seconds that a line is waited for
FLUSH_LIMIT: Final = 0.3  # seconds that the last lines may take when the process ends
PERIOD: Final = 10.0  # seconds
MOST: Final = 10  # of one event in a period

Event = MutableMapping[str, Any]
Name = tuple[str, str | None, int | None]
"""What an event is called, and the export and the ring that it is about."""

_always: dict[str, str] = {}
"""What every event says."""


def configure(*, json: bool = False) -> None:
    """Send every event to standard error, as JSON if asked for or if nobody watches."""
    people = not json and sys.stderr.isatty()
    render = _for_people() if people else _for_programs()
    level = _level()
    limits: list[Any] = []
    if level > logging.DEBUG:  # or else somebody wants to see everything
        limits = [limiter := Limiter(_writer.wake)]
        _writer.take_late = lambda end: [render(None, "", event) for event in limiter.take(end=end)]
        _writer.next_late = limiter.next_end
    structlog.configure(
        processors=[
            _say_always,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not people),
            *([] if people else [structlog.processors.format_exc_info]),
            *limits,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=StandardError,
        cache_logger_on_first_use=True,
    )
    atexit.register(flush)


def flush(limit: float = FLUSH_LIMIT) -> None:
    """Wait until all that was logged is written, for `limit` seconds at the most."""
    _writer.flush(limit)


def hold() -> None:
    """Keep what is logged, and start no thread, until `release`."""
    _writer.is_held = True


def release() -> None:
    """Write what was kept, and whatever comes, after `hold`."""
    _writer.release()


def write_kept() -> None:
    """Write what was kept, in this thread, for one that has no other."""
    _writer.write_kept()


def relay(line: str) -> None:
    """Pass a line on that another process has logged."""
    _writer.put(line)


def name_export(name: str) -> None:
    """Have every event name the export: a process has one."""
    _always["export"] = name


class StandardError:
    """Where events go.  That nobody reads them must neither end nor stop the daemon."""

    def __init__(self, *_names: object) -> None:
        """Be made as structlog makes its loggers; names do not matter."""

    def msg(self, line: str) -> None:
        """Have `line` written in one piece."""
        _writer.put(line)

    debug = info = warning = error = critical = exception = msg


def _say_always(_logger: Any, _method: str, event: Any) -> Any:
    return _always | event


@dataclass(slots=True)
class _Recent:
    """How often an event came in the present period."""

    end: float
    """When that is over, by the monotonic clock."""
    count: int = 0
    last: Event | None = None
    """The last that was held back."""


class Limiter:
    """Holds back what comes too often, by event, export and ring; a processor of structlog."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when there is something for `take`, later on."""
        self._wake = wake
        self._lock = threading.Lock()
        self._recent: dict[Name, _Recent] = {}
        self._ready: list[Event] = []

    def __call__(self, _logger: object, _method: str, event: Event) -> Event:
        """Return `event`, or raise DropEvent."""
        name = (str(event.get("event")), event.get("export"), event.get("ring"))
        now = time.monotonic()
        with self._lock:
            recent = self._recent.get(name)
            if recent is None or now >= recent.end:
                self._retire(name)
                recent = self._recent[name] = _Recent(now + PERIOD)
            recent.count += 1
            if recent.count <= MOST:
                return event
            if event.get("exc_info") is True:
                event["exc_info"] = sys.exc_info()
            first, recent.last = recent.last is None, event
        if first:
            self._wake()
        raise structlog.DropEvent

    def take(self, *, end: bool = False) -> list[Event]:
        """What was held back in periods that are over, or in all of them at the `end`."""
        now = time.monotonic()
        with self._lock:
            for name in [n for n, r in self._recent.items() if end or now >= r.end]:
                self._retire(name)
            ready, self._ready = self._ready, []
        return ready

    def next_end(self) -> float | None:
        """When `take` has something, by the monotonic clock; None if never as it stands."""
        with self._lock:
            return min((r.end for r in self._recent.values() if r.last is not None), default=None)

    def _retire(self, name: Name) -> None:
        recent = self._recent.pop(name, None)
        if recent is not None and recent.last is not None:
            recent.last["suppressed"] = recent.count - MOST - 1  # but for this one
            self._ready.append(recent.last)


class _Writer:
    """The thread that writes; it is started with the first line."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: collections.deque[bytes] = collections.deque()
        self._queued = 0  # bytes, of the line that is being written as well
        self._dropped = 0
        self._last = 0  # lines put so far, and how many of them are written or dropped
        self._done = 0
        self._is_slow = False  # nobody reads, or not fast enough, since all was written
        self._thread: threading.Thread | None = None
        self.is_held = False
        self.take_late: Callable[[bool], list[str]] = lambda _: []
        self.next_late: Callable[[], float | None] = lambda: None

    def put(self, text: str) -> None:
        """Write a line, when its turn comes."""
        line = text.encode(errors="backslashreplace") + b"\n"
        with self._changed:
            while self._lines and self._queued + len(line) > QUEUE_BYTES:
                self._queued -= len(self._lines.popleft())
                self._dropped += 1
                self._done += 1
            self._lines.append(line)
            self._queued += len(line)
            self._last = number = self._last + 1
            self.wake()
            if not self._is_slow and self._thread not in (None, threading.current_thread()):
                written = self._changed.wait_for(lambda: self._done >= number, PATIENCE)
                self._is_slow = not written

    def wake(self) -> None:
        """Have the thread look what there is to do."""
        with self._changed, contextlib.suppress(RuntimeError):  # no thread is to be had
            if self._thread is None and not self.is_held:
                thread = threading.Thread(target=self._run, name="blkd-log", daemon=True)
                thread.start()
                self._thread = thread
            self._changed.notify_all()

    def release(self) -> None:
        """Have a thread again, now if there is something to do for it."""
        with self._changed:
            self.is_held = False
            if self._lines:
                self.wake()

    def write_kept(self) -> None:
        """Write all lines in this thread; there may be no other."""
        with self._changed:
            while self._lines:
                _write(self._lines.popleft())
                self._done += 1
            self._queued = 0

    def flush(self, limit: float) -> None:
        """Write what was held back as well, and wait until all is written."""
        for text in self.take_late(True):
            self.put(text)
        with self._changed:
            self._changed.wait_for(lambda: not self._queued or self._thread is None, limit)

    def _run(self) -> None:
        while True:
            with self._changed:
                late = self.next_late()
                if not self._lines:
                    wait = None if late is None else max(0.0, late - time.monotonic())
                    self._changed.wait(wait)
                line = self._lines.popleft() if self._lines else None
            if line is not None:
                _write(line)
                with self._changed:
                    self._queued -= len(line)
                    self._done += 1
                    self._is_slow = self._is_slow and bool(self._lines)
                    dropped, self._dropped = self._dropped, 0
                    self._changed.notify_all()
                if dropped:
                    structlog.get_logger().warning("log lines dropped", count=dropped)
            for text in self.take_late(False):
                self.put(text)


def _write(line: bytes) -> None:
    """Write a whole line, however long that takes; whose reader is gone is given up."""
    left = memoryview(line)
    with contextlib.suppress(OSError):
        while left:
            try:
                left = left[os.write(STDERR, left) :]
            except BlockingIOError:  # somebody has made the open file so, and has it too
                select.select([], [STDERR], [])


_writer: Final = _Writer()


def _for_people() -> Any:
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)


def _for_programs() -> Any:
    return structlog.processors.JSONRenderer(serializer=_to_json)


def _to_json(event: object, **_options: object) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=str).decode()
    except UnicodeEncodeError:  # a path with bytes that are no UTF-8
        return msgspec.json.encode(_printable(event), enc_hook=str).decode()


def _printable(value: object) -> object:
    """`value` with what is no Unicode in it made visible."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {name: _printable(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_printable(inner) for inner in value]
        case None | bool() | int() | float():
            return value
        case _:
            return _printable(str(value))


def _level() -> int:
    return logging.DEBUG if os.environ.get("BLKD_LOG", "").lower() == "debug" else logging.INFO
