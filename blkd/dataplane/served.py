# SPDX-License-Identifier: Apache-2.0
"""What the data path asks of the device whose vrings it serves, whatever its kind.

Guest memory, vrings, eventfds, the in-flight region and the dirty log are the data path's own.
What a request means is the device's: its part of each worker thread carries requests out, is
configured with bytes that only it reads, and reports what only it understands.
"""

from collections.abc import Mapping
from typing import Protocol

from blkd.virtio.device import Device


class DevicePart(Protocol):
    """A device's part of one worker thread."""

    @property
    def capsule(self) -> object:
        """A capsule around what the worker calls: `Device` of src/worker/state.pxd."""

    def counters(self, ring: int) -> Mapping[str, int]:
        """What the device counts of the worker's vring `ring`, by name, from 0 on."""

    def report(self, code: int) -> None:
        """Log a report of the worker that is the device's own: the code is, too."""

    def close(self) -> None:
        """Log no more: the worker is to end."""


class ServedDevice(Protocol):
    """A device together with what stands behind it; `served_disk.ServedDisk` is one."""

    @property
    def device(self) -> Device:
        """The device as its driver sees it."""

    @property
    def name(self) -> str:
        """What to call it in the log."""

    @property
    def longest_chain(self) -> int:
        """Descriptors of the longest chain that is served, where the vring is not longer itself."""

    def make_part(self, number: int, vrings: int) -> DevicePart:
        """The device's part of worker `number`, which has up to `vrings` vrings of the device.

        Each is of up to MAX_QUEUE_SIZE descriptors.  Raises OSError.
        """

    @property
    def configuration(self) -> bytes:
        """The device's present parameters, as its parts of the workers take them."""

    @property
    def note(self) -> bytes | None:
        """What a back end that serves the device after this one died must know of it.

        Up to `inflight.NOTE_BYTES` bytes, kept behind the in-flight region; None for nothing new.
        """

    def recall(self, note: bytes) -> None:
        """Be as the back end that left this note has left the device."""
