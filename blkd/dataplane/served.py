# SPDX-License-Identifier: Apache-2.0
"""What the data path asks of the device whose vrings it serves, whatever its kind.

Guest memory, vrings, eventfds, the in-flight region and the dirty log are the data path's own.
What a request means is the device's: how a worker thread is made for it and configured, and what
the worker reports of it.
"""

from typing import Protocol

from blkd import ring
from blkd.virtio.device import Device


class DeviceReports(Protocol):
    """Logs what one worker reports of its device."""

    def report(self, code: int) -> None:
        """Log a report that is the device's own; the device's kind gives the code a meaning."""

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

    def make_worker(self, number: int, rings: int, longest_poll: int) -> ring.Worker:
        """Worker `number`, with room for `rings` vrings of this device, not running yet.

        It polls for up to `longest_poll` nanoseconds before it sleeps.  Raises OSError.
        """

    def configure(self, worker: ring.Worker) -> int:
        """Give a worker the device's present parameters: the ticket of the command."""

    def reports(self, worker: ring.Worker) -> DeviceReports:
        """What logs this worker's reports of the device."""

    @property
    def note(self) -> bytes | None:
        """What a back end that serves the device after this one died must know of it.

        Up to `inflight.NOTE_BYTES` bytes, kept behind the in-flight region; None for nothing new.
        """

    def recall(self, note: bytes) -> None:
        """Be as the back end that left this note has left the device."""
