# SPDX-License-Identifier: Apache-2.0
"""Small classes that play roles of blkd for tests of what stands beside them."""

import os
from collections.abc import Callable, Sequence

from blkd.errors import RequestRefused
from blkd.vhost_user.inflight import Inflight
from blkd.vhost_user.iotlb import Access, IotlbEntry
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import LogBase, MemoryRegion


class ToyDevice:
    """Plays `Device`: 64 bytes of configuration, of which byte 32 is writable."""

    def __init__(self, queues: int = 4, queue_size: int = 256) -> None:
        self.queues, self.queue_size = queues, queue_size
        self.features = 1 << 33 | 1 << 32 | 1 << 29 | 1 << 28 | 1 << 9
        self.protocol_features = 0
        self.generation = 0
        self.changing = range(8)
        self.flaws: dict[int, str] = {}
        self.space = bytearray(range(64))
        self.accepted = 0
        self.resets = 0

    def config(self, offset: int, size: int) -> bytes:
        return bytes(self.space[offset : offset + size]).ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        if (offset, len(data)) != (32, 1):
            raise RequestRefused("not writable")
        self.space[offset : offset + 1] = data

    def accept(self, features: int) -> None:
        if features & ~self.features:
            raise RequestRefused("never offered")
        self.accepted = features

    def reset(self) -> None:
        self.resets += 1
        self.accepted = 0

    def change(self) -> None:
        """Let the configuration differ from what anybody has read."""
        self.generation += 1
        self.space[0] = self.generation


class RecordingDataPath:
    """Plays `DataPath`: writes down what it is called for, and closes what it is given, at the end.

    `failures` maps a method's name to the error that it raises, after the descriptors were taken.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.failures: dict[str, Exception] = {}
        self.base = 0
        """What a stopped ring answers."""
        self.on_miss: Callable[[int, Access], None] = lambda _iova, _access: None

    def _record(self, name: str, *details: object, fds: Sequence[int | None] = ()) -> None:
        for fd in fds:
            if fd is not None:
                os.close(fd)
        self.calls.append((name, *details))
        if name in self.failures:
            raise self.failures[name]

    def names(self) -> list[str]:
        return [str(call[0]) for call in self.calls]

    async def set_memory(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        self._record("set_memory", tuple(regions), len(fds), fds=fds)

    async def add_memory(self, region: MemoryRegion, fd: int) -> None:
        self._record("add_memory", region, fds=[fd])

    async def remove_memory(self, region: MemoryRegion) -> None:
        self._record("remove_memory", region)

    async def translate_addresses(self, *, on: bool) -> None:
        self._record("translate_addresses", on)

    async def update_iotlb(self, entry: IotlbEntry) -> None:
        self._record("update_iotlb", entry)

    async def invalidate_iotlb(self, iova: int, size: int) -> None:
        self._record("invalidate_iotlb", iova, size)

    async def deny_iotlb(self, iova: int, access: Access) -> None:
        self._record("deny_iotlb", iova, access)

    async def make_inflight(self, region: Inflight) -> int:
        self._record("make_inflight", region)
        return os.memfd_create("inflight")

    async def use_inflight(self, region: Inflight, fd: int, *, packed: bool) -> None:
        self._record("use_inflight", region, packed, fds=[fd])

    async def set_log(self, log: LogBase | None, fd: int | None) -> None:
        self._record("set_log", log, fds=[fd])

    async def log_data(self, *, on: bool) -> None:
        self._record("log_data", on)

    async def set_kick(self, index: int, fd: int | None) -> None:
        self._record("set_kick", index, fd is not None, fds=[fd])

    async def set_call(self, index: int, fd: int | None) -> None:
        self._record("set_call", index, fd is not None, fds=[fd])

    async def set_error(self, index: int, fd: int | None) -> None:
        self._record("set_error", index, fd is not None, fds=[fd])

    async def start_vring(self, index: int, setup: VringSetup) -> None:
        self._record("start_vring", index, setup)

    async def move_vring(self, index: int, setup: VringSetup) -> None:
        self._record("move_vring", index, setup)

    async def enable_vring(self, index: int, *, enabled: bool) -> None:
        self._record("enable_vring", index, enabled)

    async def stop_vring(self, index: int) -> int:
        self._record("stop_vring", index)
        return self.base

    def announce(self, mac: bytes) -> None:
        self._record("announce", mac)

    async def configure(self) -> None:
        self._record("configure")

    async def reset(self) -> None:
        self._record("reset")
