# SPDX-License-Identifier: Apache-2.0
"""An image that fails, delays and shortens requests on order: for tests and drills.

`faulty:RULE[,RULE...]:IMAGE`, each rule `ACTION@KINDS[/N][*MOST][+START-END]`:

    faulty:fail@write/100:disk.img              every 100th write gets an I/O error
    faulty:fail=ENOSPC@write*5:disk.img         of each worker, five writes find no space
    faulty:delay=20ms@read|flush:disk.img       each read and flush takes 20 ms longer
    faulty:short@any+0-1M:null:1G               the kernel gives only a part at first

The first rule that strikes is applied, by the data path (`src/engine/faulty.pxd`).
"""

import errno
import re
from typing import Final, cast

from blkd.errors import ImageError
from blkd.host import sizes
from blkd.image.base import Image, Limits, Watch
from blkd.image.engine import Engine, Fault, FaultAction, FaultKind, FaultyIo

PREFIX: Final = "faulty:"
MAX_RULES: Final = 8
HINT: Final = "for example faulty:fail@write/100,delay=20ms@read:disk.img"
KINDS: Final[tuple[FaultKind, ...]] = ("read", "write", "flush", "discard", "zeroes")
UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
LAST_BYTE: Final = 2**63 - 1
MOST_SKIPPED: Final = 0xFFFFFFFF  # the data path counts to that
MOST_STRUCK: Final = 2**63 - 1  # likewise
LONGEST_DELAY: Final = 3600 * UNITS["s"]
RULE: Final = re.compile(
    r"(?P<action>fail(?:=(?P<error>E[A-Z0-9]+))?|short|delay=(?P<delay>\d+)(?P<unit>ns|us|ms|s))"
    r"@(?P<kinds>[a-z|]+)"
    r"(?:/(?P<every>\d+))?"
    r"(?:\*(?P<most>\d+))?"
    r"(?:\+(?P<start>[\w.]+)-(?P<end>[\w.]+))?",
    re.ASCII,
)


class FaultyImage:
    """Another image, with faults; plays `image.base.Image`."""

    def __init__(self, path: str, inner: Image, faults: tuple[Fault, ...]) -> None:
        self.path = path
        self._faults = faults
        self._inner = inner

    def io(self, worker: int) -> FaultyIo:
        """As the image has it, with the faults."""
        return FaultyIo(self._inner.io(worker), self._faults)

    def lent(self) -> int | None:
        """The image's own."""
        return self._inner.lent()

    async def set_size(self, size: int) -> None:
        """As the image does."""
        await self._inner.set_size(size)

    def watch(self, period: float) -> Watch:
        """The image's own."""
        return self._inner.watch(period)

    def space(self) -> int | None:
        """The image's own."""
        return self._inner.space()

    def write_error(self) -> int:
        """The image's own."""
        return self._inner.write_error()

    @property
    def read_only(self) -> bool:
        """The image's own."""
        return self._inner.read_only

    @property
    def direct(self) -> bool:
        """The image's own."""
        return self._inner.direct

    @property
    def identity(self) -> str:
        """The image's own."""
        return self._inner.identity

    @property
    def limits(self) -> Limits:
        """The image's own."""
        return self._inner.limits

    @property
    def engine(self) -> Engine:
        """The image's own; a request that a rule strikes goes through io_uring."""
        return self._inner.engine

    @property
    def is_locked(self) -> bool:
        """The image's own."""
        return self._inner.is_locked

    async def take_lock(self) -> None:
        """As the image does."""
        await self._inner.take_lock()

    async def release_lock(self) -> None:
        """As the image does."""
        await self._inner.release_lock()

    async def measure(self) -> int:
        """As the image does."""
        return await self._inner.measure()

    async def refresh(self) -> bool:
        """As the image does."""
        return await self._inner.refresh()

    async def resize(self, size: int) -> None:
        """As the image does."""
        await self._inner.resize(size)

    def close(self) -> None:
        """As the image does."""
        self._inner.close()


def split(name: str) -> tuple[tuple[Fault, ...], str]:
    """The rules of a faulty image's name, and the name of the image itself.

    Raises:
        ImageError: They are no such rules.
    """
    rules, _, inner = name.removeprefix(PREFIX).partition(":")
    if not inner or inner.startswith(PREFIX):
        raise ImageError(f"{name}: no image behind the rules", hint=HINT)
    faults = tuple(_fault(name, rule) for rule in rules.split(","))
    if len(faults) > MAX_RULES:
        raise ImageError(f"{name}: {len(faults)} rules, not {MAX_RULES} at most")
    return faults, inner


def _fault(name: str, rule: str) -> Fault:
    found = RULE.fullmatch(rule)
    if found is None:
        raise ImageError(f"{name}: {rule!r} is no rule", hint=HINT)
    kinds = KINDS if found["kinds"] == "any" else tuple(found["kinds"].split("|"))
    if unknown := set(kinds) - set(KINDS):
        raise ImageError(
            f"{name}: {min(unknown)!r} is no kind of request",
            hint=f"there are {', '.join(KINDS)} and any",
        )
    action = cast("FaultAction", found["action"].partition("=")[0])
    every, most = int(found["every"] or 1), int(found["most"] or MOST_STRUCK)
    code = getattr(errno, found["error"] or "EIO", 0)
    if not code:
        raise ImageError(f"{name}: {found['error']} is no error's name")
    delay = int(found["delay"] or 0) * UNITS[found["unit"] or "ns"]
    try:
        start = sizes.parse(found["start"] or "0")
        end = sizes.parse(found["end"]) if found["end"] else LAST_BYTE
    except ValueError as error:
        raise ImageError(f"{name}: {error}", hint=HINT) from error
    if not (
        0 < every <= MOST_SKIPPED
        and 0 < most <= MOST_STRUCK
        and start < end
        and delay <= LONGEST_DELAY
    ):
        raise ImageError(f"{name}: {rule!r} can never strike, or asks too much", hint=HINT)
    return Fault(action, kinds, every, start, end, delay, most, code)
