# SPDX-License-Identifier: Apache-2.0
"""What is measured: which load, on which kind of image, and who is to carry it.  Pure."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Final

KIB: Final = 1 << 10
CLIENT_CPUS: Final = "0"
TARGET_CPUS: Final = "1"


class Backing(enum.StrEnum):
    """What lies behind the disk."""

    NULL = "null"
    """Nothing: reads are answered at once, and what is measured is the way to the guest."""
    TMPFS = "tmpfs"
    EXT4 = "ext4"
    """A file on the disk of the checkout, whatever the file system there is."""


class Family(enum.StrEnum):
    """Whose subject it is."""

    BLKD = "blkd"
    QSD = "qsd"
    FIO = "fio"


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that can carry a load, in one of its settings."""

    key: str
    family: Family
    title: str
    options: tuple[str, ...] = ()
    """Of `blkd serve` or, as "aio" and "iothread", of qemu-storage-daemon; fio's ioengine."""
    client: tuple[str, ...] = ()
    """Of `blkd bench`."""


def _qsd(aio: str, *options: str) -> Subject:
    words = (aio, *options)
    key, title = "-".join(("qsd", *words)), " ".join(("QSD", *words))
    return Subject(key.removesuffix("-null"), Family.QSD, title, words)


def _fio(engine: str) -> Subject:
    return Subject(f"fio-{engine}", Family.FIO, f"fio {engine}", (engine,))


BLKD: Final = Subject("blkd", Family.BLKD, "blkd")
NO_POLL: Final = Subject("blkd-nopoll", Family.BLKD, "blkd --poll-us 0", ("--poll-us", "0"))
URING: Final = Subject("blkd-uring", Family.BLKD, "blkd --engine uring", ("--engine", "uring"))
PACKED: Final = Subject("blkd-packed", Family.BLKD, "blkd, packed ring", (), ("--packed",))
QSD_NULL: Final = (_qsd("null"), _qsd("null", "iothread"))
QSD_THREADS, QSD_NATIVE, QSD_URING = map(_qsd, ("threads", "native", "io_uring"))
QSD_FILE: Final = (
    *(QSD_THREADS, QSD_NATIVE, QSD_URING),
    *(_qsd(aio, "iothread") for aio in ("threads", "native", "io_uring")),
)
FIO_PSYNC, FIO_LIBAIO, FIO_URING = map(_fio, ("psync", "libaio", "io_uring"))


@dataclass(frozen=True, slots=True)
class Case:
    """A load, and its subjects."""

    backing: Backing
    rw: str
    block_bytes: int
    depth: int
    """Requests in flight on each queue."""
    subjects: tuple[Subject, ...]
    queues: int = 1
    spread: bool = False
    """The target may run on every processor, the client's too."""
    guest: bool = False
    """The load runs in a Linux guest."""

    @property
    def key(self) -> str:
        """What it is called in the data."""
        where = f"guest-{self.backing}" if self.guest else f"{self.backing}"
        queues = f"-{self.queues}q" if self.spread else ""
        return f"{where}-{self.rw}-{self.block_bytes // KIB}k-qd{self.depth}{queues}"

    @property
    def title(self) -> str:
        """What it is called in the report."""
        queues = f", {self.queues} queue{'s'[: self.queues > 1]}" if self.spread else ""
        where = f"{self.backing}, in a guest" if self.guest else f"{self.backing}"
        return f"{where}: {self.rw} {self.block_bytes // KIB} KiB, QD{self.depth}{queues}"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, and for how long."""

    name: str
    rounds: int
    runtime: float
    """Seconds of each measurement, after `ramp` seconds of the same load."""
    ramp: float
    cases: tuple[Case, ...]
    footprints: tuple[Subject, ...] = ()
    idle_window: float = 2.0
    """Seconds in which an idle export is watched."""
    guest_rounds: int = 0
    """A guest takes its time to boot, for each subject and round."""
    guest_cases: tuple[Case, ...] = ()
    profile: bool = False
    limits_runtime: float = 0.0
    """Seconds of each load of a limited disk; 0 for none."""

    def only(self, cases: str = "*", subjects: str = "*") -> "Plan":
        """The part of it whose keys match these patterns."""
        return replace(
            self,
            cases=tuple(_matching(self.cases, cases, subjects)),
            guest_cases=tuple(_matching(self.guest_cases, cases, subjects)),
            footprints=tuple(s for s in self.footprints if fnmatch(s.key, subjects)),
        )


def _matching(cases: tuple[Case, ...], pattern: str, subjects: str) -> Iterator[Case]:
    for case in cases:
        kept = tuple(s for s in case.subjects if fnmatch(s.key, subjects))
        if kept and fnmatch(case.key, pattern):
            yield replace(case, subjects=kept)


@dataclass(frozen=True, slots=True)
class _Choice:
    """The subjects that a plan has time for."""

    null: tuple[Subject, ...]
    file: tuple[Subject, ...]
    """Those of a file that are the same at every depth."""
    disk: tuple[Subject, ...]
    """Likewise, on the checkout's disk."""
    depths: tuple[int, ...] = (1, 32, 128)
    queues: tuple[int, ...] = (1, 2, 4)
    more: tuple[Case, ...] = field(default=())


def _cases(choice: _Choice) -> Iterator[Case]:
    small, large = 4 * KIB, 128 * KIB
    for depth in choice.depths:
        only_one = (NO_POLL,) if depth == 1 else ()
        yield Case(Backing.NULL, "randread", small, depth, choice.null + only_one)
    for depth in choice.depths:
        only_one = (FIO_PSYNC,) if depth == 1 else ()
        yield Case(Backing.TMPFS, "randread", small, depth, choice.file + only_one)
    yield Case(Backing.TMPFS, "read", large, 32, choice.file)
    for depth, ours in (1, (NO_POLL, BLKD)), (32, (BLKD,)):
        only_one = (FIO_PSYNC,) if depth == 1 else ()
        yield Case(Backing.EXT4, "randread", small, depth, (*ours, *choice.disk, *only_one))
    for queues in choice.queues:
        yield Case(Backing.NULL, "randread", small, 32, choice.null, queues=queues, spread=True)
    yield from choice.more


def _in_guest() -> tuple[Case, ...]:
    subjects = (BLKD, QSD_NATIVE, _qsd("io_uring", "iothread"))
    return tuple(
        Case(Backing.TMPFS, "randread", 4 * KIB, depth, subjects, guest=True) for depth in (1, 32)
    )


FULL: Final = Plan(
    "full",
    rounds=5,
    runtime=0.8,
    ramp=0.1,
    cases=tuple(
        _cases(
            _Choice(
                null=(BLKD, PACKED, *QSD_NULL),
                file=(BLKD, URING, *QSD_FILE, FIO_LIBAIO, FIO_URING),
                disk=(*QSD_FILE, FIO_LIBAIO, FIO_URING),
                more=(
                    Case(
                        *(Backing.TMPFS, "randwrite", 4 * KIB, 32),
                        (BLKD, *QSD_FILE, FIO_LIBAIO, FIO_URING),
                    ),
                ),
            )
        )
    ),
    footprints=(BLKD, QSD_NATIVE, _qsd("native", "iothread")),
    idle_window=5.0,
    guest_rounds=5,
    guest_cases=_in_guest(),
    profile=True,
    limits_runtime=10.0,
)

QUICK: Final = Plan(
    "quick",
    rounds=3,
    runtime=0.8,
    ramp=0.2,
    cases=tuple(
        _cases(
            _Choice(
                null=(BLKD, *QSD_NULL),
                file=(BLKD, QSD_NATIVE, _qsd("native", "iothread"), FIO_LIBAIO),
                disk=(QSD_NATIVE, QSD_URING, FIO_URING),
                depths=(1, 32),
                queues=(1, 2),
            )
        )
    ),
    footprints=(BLKD, QSD_NATIVE),
)

SMOKE: Final = Plan(
    "smoke",
    rounds=1,
    runtime=0.2,
    ramp=0.0,
    cases=(
        Case(Backing.TMPFS, "randread", 4 * KIB, 1, (BLKD,)),
        Case(Backing.TMPFS, "randwrite", 4 * KIB, 32, (BLKD,)),
    ),
)

PLANS: Final = {plan.name: plan for plan in (FULL, QUICK, SMOKE)}
SUBJECTS: Final = {
    subject.key: subject
    for plan in PLANS.values()
    for case in (*plan.cases, *plan.guest_cases)
    for subject in case.subjects
}
CASES: Final = {
    case.key: case for plan in (SMOKE, QUICK, FULL) for case in (*plan.cases, *plan.guest_cases)
}
"""By key; of those that plans share, the full plan's."""
