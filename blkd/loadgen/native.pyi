# SPDX-License-Identifier: Apache-2.0
# What src/loadgen.pyx shows to Python; its docstrings are there.

from mmap import mmap
from typing import TypedDict

KIND_NAMES: tuple[str, ...]

class _Figures(TypedDict):
    seconds: float
    kicks: int
    errors: int
    intact: int
    wrong_blocks: int
    passes: int
    place: int

class Generator:
    in_flight: int
    done: int
    def __init__(
        self, memory: mmap, *, guest_address: int, queues: int, seed: int, counter: bool
    ) -> None: ...
    def add_queue(
        self,
        *,
        desc: int,
        avail: int,
        used: int,
        frames: int,
        tables: int,
        data: int,
        size: int,
        depth: int,
        frame_stride: int,
        table_stride: int,
        data_stride: int,
        kick: int,
        packed: bool,
        event_idx: bool,
        indirect: bool,
    ) -> None: ...
    def prepare(
        self,
        kind: str,
        *,
        mixed: bool,
        random: bool,
        once: bool,
        fill: bool,
        check: bool,
        any_generation: bool,
        read_share: float,
        block_bytes: int,
        segment_bytes: int,
        blocks: int,
        limit: int,
        most_passes: int,
        seconds: float,
        stall: float,
        rate: float,
        seed: int,
        generation: int,
        turn: int,
    ) -> None: ...
    def run(self) -> str: ...
    def stop(self, *, abandon: bool = False) -> None: ...
    def figures(self) -> _Figures: ...
    def latencies(self, kind: str) -> tuple[int, int, int, int, list[tuple[int, int]]]: ...
    def passings(self) -> list[tuple[int, int, int, int]]: ...
    def findings(self) -> list[tuple[str, str, int, int, int, int]]: ...
