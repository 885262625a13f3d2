# SPDX-License-Identifier: Apache-2.0
# What src/ring.pyx shows to Python; its docstrings are there.

from collections.abc import Callable, Sequence
from typing import TypeAlias

_Place: TypeAlias = tuple[int, int, int, tuple[int, int] | None]
_Fault: TypeAlias = tuple[str, Sequence[str], int, int, int, int]

RECOVERED: int

class Mapping:
    guest_address: int
    user_address: int
    size: int
    address: int
    def __init__(
        self,
        fd: int,
        offset: int,
        size: int,
        guest_address: int,
        user_address: int,
        page: int,
    ) -> None: ...

class MemoryMap:
    mappings: tuple[Mapping, ...]
    def __init__(self, mappings: Sequence[Mapping]) -> None: ...
    def populate(self, wanted: Callable[[], bool]) -> None: ...
    def locate(self, address: int, length: int) -> int: ...
    def guest_address(self, address: int) -> int: ...

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

class Worker:
    answers_fd: int
    in_flight: int
    registered: int
    has_abandoned: bool
    def __init__(
        self,
        rings: int,
        largest: int,
        longest_chain: int,
        longest_poll: int,
        engine: Engine,
    ) -> None: ...
    def run(self, name: str) -> None: ...
    def answers(self) -> list[tuple[int, int, int]]: ...
    def set_memory(self, map: MemoryMap | None, places: list[_Place | None]) -> int: ...  # noqa: A002
    def register_memory(self) -> int: ...
    def set_log(self, log: Mapping | None, of_data: bool) -> int: ...
    def set_limits(
        self,
        *,
        capacity: int,
        block_size: int,
        max_discard_sectors: int,
        max_zero_sectors: int,
        max_ranges: int,
        read_only: bool,
        write_through: bool,
        serial: bytes,
    ) -> int: ...
    def start(
        self,
        ring: int,
        place: _Place,
        *,
        size: int,
        base: int,
        packed: bool,
        event_idx: bool,
        indirect: bool,
        inflight: int = 0,
        entries: int = 0,
        taken_over: bool = False,
        broken: bool = False,
    ) -> int: ...
    def move(self, ring: int, place: _Place) -> int: ...
    def stop(self, ring: int) -> int: ...
    def enable(self, ring: int, enabled: bool) -> int: ...
    def set_kick(self, ring: int, fd: int) -> int: ...
    def set_call(self, ring: int, fd: int) -> int: ...
    def set_error(self, ring: int, fd: int) -> int: ...
    def pause(self) -> int: ...
    def resume(self) -> int: ...
    def quit(self) -> int: ...
    @property
    def failures(self) -> dict[int, tuple[str, int, int, int]]: ...
    def report_failures(self) -> None: ...
    def counters(self, ring: int) -> dict[str, int]: ...
    def ring_state(self, ring: int) -> dict[str, int]: ...
    def flaw(self, ring: int) -> tuple[int, int, int, int]: ...

def cut_off(workers: Sequence[Worker]) -> None: ...
def fault_eventfd() -> int: ...
def probe_io_uring() -> dict[str, bool]: ...
def probe_discard(fd: int) -> bool: ...
