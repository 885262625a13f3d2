# SPDX-License-Identifier: Apache-2.0
# What src/vsock.pyx shows to Python; its docstrings are there.

from collections.abc import Sequence

MOST_CONNECTIONS: int
MOST_MEMBERS: int
MOST_PATH_BYTES: int
MOST_FORWARD_COUNT: int

class Group:
    def __init__(self, cids: Sequence[int]) -> None: ...

class VsockPart:
    def __init__(
        self,
        *,
        vrings: int,
        largest: int,
        cid: int,
        most: int,
        stream_fd: int,
        message_fd: int,
        path: bytes,
        forwards: Sequence[tuple[int, bytes]],
        group: Group | None,
        looks_ahead: bool,
    ) -> None: ...
    @property
    def capsule(self) -> object: ...
    def left_open(self) -> list[int]: ...
    def counters(self, ring: int) -> dict[str, int]: ...

def choices(*, features: int, epoch: int) -> bytes: ...
