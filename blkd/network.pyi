# SPDX-License-Identifier: Apache-2.0
# What src/network.pyx shows to Python; its docstrings are there.

from collections.abc import Iterable, Sequence

TAP_GONE: int
COMMAND: int
PAIRS: int
OFFLOADS: int
OK: int
ERROR: int

class NetPart:
    capsule: object
    def __init__(
        self, vrings: Sequence[tuple[int, int, int]], *, largest: int, longest_chain: int
    ) -> None: ...
    def counters(self, ring: int) -> dict[str, int]: ...
    def command(self, ring: int) -> tuple[int, int, int]: ...

def parameters(
    *,
    header_bytes: int,
    mergeable: bool,
    checksums: bool,
    ecn: bool,
    sends: Iterable[str],
    guest_checksums: bool,
    guest_ecn: bool,
    takes: Iterable[str],
    longest: int,
    control: int | None,
    answered: int,
    answer: int,
) -> bytes: ...
