# SPDX-License-Identifier: Apache-2.0
# What src/block.pyx shows to Python; its docstrings are there.

from collections.abc import Sequence
from typing import TypeAlias

_Fault: TypeAlias = tuple[str, Sequence[str], int, int, int, int]

SYNC_FAILED: int

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

class BlkPart:
    capsule: object
    def __init__(self, engine: Engine, *, rings: int, largest: int, longest_chain: int) -> None: ...
    @property
    def failures(self) -> dict[int, tuple[str, int, int, int]]: ...
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
) -> bytes: ...
def probe_discard(fd: int) -> bool: ...
