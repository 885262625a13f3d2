# SPDX-License-Identifier: Apache-2.0
# What src/block.pyx shows to Python; its docstrings are there.

from collections.abc import Sequence
from typing import TypeAlias

_Fault: TypeAlias = tuple[str, Sequence[str], int, int, int, int, int, int]

_Slow: TypeAlias = tuple[int, str, int, int, tuple[int, int, int], int, bool, bool]

SYNC_FAILED: int
SLOW: int
HELD: int

class SyncState:
    @property
    def error(self) -> int: ...
    def fail(self, error: int) -> bool: ...

class Engine: ...

class FileEngine(Engine):
    def __init__(
        self,
        *,
        fd: int,
        sync_fd: int,
        direct: bool,
        at_once: bool,
        nowait: bool,
        block_size: int,
        memory_alignment: int,
        discard_by_command: bool,
        syncs: SyncState,
    ) -> None: ...

class NullEngine(Engine):
    def __init__(self) -> None: ...

class ForeignEngine(Engine):
    def __init__(self, capsule: object) -> None: ...

class FaultyEngine(Engine):
    def __init__(self, inner: Engine, faults: Sequence[_Fault]) -> None: ...

class Rates:
    iops_size: int
    def __init__(self, memory: memoryview | None = None) -> None: ...
    def limit(
        self, dimension: int, *, average: int, burst: int, credit: int, present: int = 0
    ) -> None: ...
    @property
    def waiting(self) -> int: ...

class BlkPart:
    capsule: object
    def __init__(
        self,
        engine: Engine,
        rates: Rates,
        *,
        rings: int,
        largest: int,
        longest_chain: int,
        grants_fd: int = -1,
    ) -> None: ...
    @property
    def failures(self) -> dict[int, tuple[str, int, int, int]]: ...
    @property
    def held(self) -> tuple[int, int, int, str, int, int]: ...
    def in_flight(self) -> list[tuple[int, str, int, int, int, str]]: ...
    def take_slow(self) -> tuple[list[_Slow], int]: ...
    def report_failures(self) -> None: ...
    def counters(self, ring: int) -> dict[str, int]: ...

def limits(
    *,
    capacity: int,
    block_size: int,
    max_discard_sectors: int,
    max_zero_sectors: int,
    max_ranges: int,
    read_only: bool,
    write_through: bool,
    serial: bytes,
    hold_no_space: bool = False,
    hold_errors: bool = False,
    longest_held: int = 0,
    slow: int = 0,
) -> bytes: ...
def probe_discard(fd: int) -> bool: ...
