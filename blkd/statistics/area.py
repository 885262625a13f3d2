# SPDX-License-Identifier: Apache-2.0
"""The statistics area of an export: memory that outlives its process, and who reads it.

A sealed file of memory, mapped by the export's process, whose workers write it, and by the daemon,
which reads the figures of all exports without a call to any.  It is handed on when an export is
upgraded, and given to the next process when one has died.

A process that was taken over may write anything there: it spoils its own figures, and whoever reads
them takes nothing for more than a number.
"""

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Final, Self

from blkd.errors import AreaRefused, DataPlaneError
from blkd.host.fds import close_foreign, is_eventfd
from blkd.statistics import area_layout as at
from blkd.statistics import limits_page
from blkd.statistics.figures import (
    BUCKETS,
    OPERATIONS,
    SIZE_CLASSES,
    Cell,
    Errors,
    Events,
    Figures,
    Histogram,
    Requests,
)

NAME: Final = "blkd-statistics"
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
WRAP: Final = 1 << 63
"""Sums are taken modulo this: JSON has no larger numbers everywhere."""


class Area:
    """An area, mapped; it has its descriptors, and closes all."""

    def __init__(self, fd: int, wake: int | None = None) -> None:
        """Takes `fd`, and `wake`: see the attribute.

        Raises AreaRefused where the one is no area of this layout, or the other no eventfd.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(close_foreign, [fd] if wake is None else [fd, wake])
            if wake is not None and not is_eventfd(wake):  # to poll another may wait for ever
                raise AreaRefused("what came as an eventfd is none")
            _require_sealed(fd)
            try:
                self._map = mmap.mmap(fd, at.AREA_BYTES)
            except (OSError, ValueError) as error:
                raise AreaRefused(f"a statistics area that cannot be mapped: {error}") from error
            undo.callback(self._map.close)
            magic, layout, self._began_ns = at.HEADER.unpack_from(self._map)
            if (magic, layout) != (at.MAGIC, at.LAYOUT):
                raise AreaRefused(f"a statistics area of layout {layout}, not {at.LAYOUT}")
            undo.pop_all()
        self.fd = fd
        """Borrowed by whoever passes it on."""
        self.wake = wake
        """An eventfd by which the process that writes says that it waits for a grant; borrowed.

        None where it has nobody to say so.
        """
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")

    @classmethod
    def make(cls) -> Self:
        """A new one, of zeroes.  Raises DataPlaneError where there is no memory for it."""
        try:
            fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise DataPlaneError(f"no memory for a statistics area: {error}") from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            try:
                os.ftruncate(fd, at.AREA_BYTES)
                os.pwrite(fd, at.HEADER.pack(at.MAGIC, at.LAYOUT, time.monotonic_ns()), 0)
                os.pwrite(fd, limits_page.LAYOUT.to_bytes(4, "little"), at.LIMITS_AT)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            except OSError as error:
                raise DataPlaneError(f"no memory for a statistics area: {error}") from error
            undo.pop_all()
        return cls(fd)

    def close(self) -> None:
        """Close the descriptor, and unmap the area once nobody has a part of it any more.

        Does nothing the second time.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._close_wake()
        self._words.release()
        self._bytes.release()
        with contextlib.suppress(BufferError):  # a worker's: it goes with that
            self._map.close()

    def restore_layout(self) -> None:
        """Have the next process find an area: the one before may have written anything there."""
        at.HEADER.pack_into(self._map, 0, at.MAGIC, at.LAYOUT, self._began_ns)
        with self.limits_page as page:
            known = limits_page.LAYOUT.to_bytes(4, "little")
            if page[: len(known)] != known:
                page[:] = known.ljust(len(page), b"\0")

    def take_wake(self, wake: int) -> None:
        """Have another eventfd, for another process; takes it, and closes the one before."""
        self._close_wake()
        self.wake = wake

    def _close_wake(self) -> None:
        wake, self.wake = self.wake, None
        if wake is not None:
            os.close(wake)

    # ---- the process that writes ----

    @property
    def limits_page(self) -> memoryview:
        """The page of the export's rates, to be read and written; see `limits_page.LimitsPage`."""
        return self._bytes[at.LIMITS_AT : at.SLOTS_AT]

    def slot(self, worker: int) -> memoryview:
        """The part that one worker writes, and nobody else."""
        begins = at.SLOTS_AT + worker * at.SLOT_BYTES
        return self._bytes[begins : begins + at.SLOT_BYTES]

    def use_slots(self, count: int) -> None:
        """Have at least the slots of so many workers read."""
        used = at.SLOTS_IN_USE // at.WORD
        self._words[used] = max(self._words[used], count)

    def note_start(self) -> None:
        """Say that nothing is in flight and nobody is connected: who counted before has ended."""
        for slot in range(at.SLOTS):
            begins = (at.SLOTS_AT + slot * at.SLOT_BYTES) // at.WORD
            for gauge in (at.IN_FLIGHT, at.OLDEST, at.THROTTLED, at.HELD):
                self._words[begins + gauge] = 0
        self.note_front_end(False)

    def note_front_end(self, connected: bool) -> None:  # noqa: FBT001 - a callback
        """Say whether a front end is connected."""
        self._words[at.CONNECTED // at.WORD] = connected

    def note_size(self, size: int) -> None:
        """Say how many bytes the guest is shown."""
        self._words[at.SIZE // at.WORD] = size

    # ---- whoever reads ----

    @property
    def oldest_ns(self) -> int:
        """How long ago the oldest request in flight was fetched; 0 without one."""
        used = min(self._words[at.SLOTS_IN_USE // at.WORD], at.SLOTS)
        places = ((at.SLOTS_AT + n * at.SLOT_BYTES) // at.WORD + at.OLDEST for n in range(used))
        oldest = min((begun for place in places if (begun := self._words[place])), default=0)
        return max(time.monotonic_ns() - oldest, 0) if oldest else 0

    def figures(self, *, is_served: bool = True) -> Figures:
        """What it says now; gauges are those of an idle export unless a process serves it."""
        now = time.monotonic_ns()
        heads = [self._words_of(slot, 0, at.BYTES + at.CELLS) for slot in range(self._used)]
        found = self._figures(heads, now)
        if not is_served:
            return replace(found, in_flight=0, throttled=0, held=0, oldest_ns=0)
        return replace(found, connected=self._words[at.CONNECTED // at.WORD] != 0)

    @property
    def held(self) -> int:
        """How many requests are held now, if a process serves it."""
        first, step = at.SLOTS_AT // at.WORD + at.HELD, at.SLOT_BYTES // at.WORD
        return sum(self._words[first + slot * step] % WRAP for slot in range(self._used))

    @property
    def _used(self) -> int:
        """The slots that are in use."""
        return min(self._words[at.SLOTS_IN_USE // at.WORD], at.SLOTS)

    def _words_of(self, slot: int, first: int, count: int) -> list[int]:
        """So many words of a slot."""
        begins = (at.SLOTS_AT + slot * at.SLOT_BYTES) // at.WORD + first
        return [word % WRAP for word in self._words[begins : begins + count]]

    def _figures(self, heads: list[list[int]], now: int) -> Figures:
        """The figures of all slots, by what each begins with."""
        head = _together(heads) or [0] * (at.BYTES + at.CELLS)
        begun = [each[at.OLDEST] for each in heads if each[at.OLDEST]]
        return Figures(
            time_ns=now,
            began_ns=self._began_ns,
            size=self._words[at.SIZE // at.WORD] % WRAP,
            cells=tuple(self._cells(heads, head)),
            errors=Errors(**_named(Errors, head[at.ERRORS :])),
            events=Events(**_named(Events, head[at.EVENTS :])),
            busy_ns=max((each[at.BUSY] for each in heads), default=0),
            cpu_ns=head[at.CPU],
            in_flight=head[at.IN_FLIGHT],
            throttled=head[at.THROTTLED],
            held=head[at.HELD],
            oldest_ns=max(now - min(begun), 0) if begun else 0,
        )

    def _cells(self, heads: list[list[int]], head: list[int]) -> Iterator[Cell]:
        """What was counted of each kind of requests; `head` is the sum of `heads`."""
        for number, kind in enumerate(KINDS):
            if count := head[at.COUNTS + number]:
                first = (at.HEAD_BYTES + number * at.CELL_BYTES) // at.WORD
                counted = [n for n, each in enumerate(heads) if each[at.COUNTS + number]]
                words = _together(
                    [self._words_of(slot, first, at.DISK + BUCKETS) for slot in counted]
                )
                yield Cell(*kind, _requests(words, count, head[at.BYTES + number]))


def make_wake() -> int:
    """An eventfd, which no other process has had: one may have filled it.  Raises DataPlaneError.

    It is the caller's.
    """
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise DataPlaneError(f"no eventfd for a statistics area: {error}") from error


KINDS: Final = tuple((operation, size) for operation in OPERATIONS for size in SIZE_CLASSES)


def _together(parts: list[list[int]]) -> list[int]:
    """The sums of words that stand at the same places; of no parts none."""
    return parts[0] if len(parts) == 1 else [sum(words) for words in zip(*parts, strict=True)]


def _requests(cell: list[int], count: int, size: int) -> Requests:
    ring_ns, throttle_ns, disk_ns = cell[at.SUMS : at.SUMS + 3]
    return Requests(
        count,
        size,
        _histogram(cell[at.RING : at.RING + BUCKETS], ring_ns, count),
        _histogram(cell[at.THROTTLE : at.THROTTLE + BUCKETS], throttle_ns, count),
        _histogram(cell[at.DISK : at.DISK + BUCKETS], disk_ns, count),
    )


def _named(kind: type[Errors | Events], words: list[int]) -> dict[str, int]:
    """The counts of a kind, by name."""
    return dict(zip((field.name for field in fields(kind)), words, strict=False))


def _histogram(buckets: list[int], sum_ns: int, count: int) -> Histogram:
    """The times of `count` requests, of which those that took none are not in a bucket."""
    buckets[0] += max(count - sum(buckets), 0)
    return Histogram(tuple(buckets), sum_ns)


def _require_sealed(fd: int) -> None:
    """Raise AreaRefused unless `fd` is a file of memory that stays as large as an area is."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        size = os.fstat(fd).st_size
    except OSError as error:
        raise AreaRefused(f"a statistics area that is no memory: {error.strerror}") from error
    if seals & SEALS != SEALS or size != at.AREA_BYTES:
        raise AreaRefused(f"a statistics area of {size} bytes with seals {seals:#x}")
