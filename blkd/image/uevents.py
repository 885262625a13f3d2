# SPDX-License-Identifier: Apache-2.0
"""The kernel's word that a block device has another capacity (NETLINK_KOBJECT_UEVENT)."""

import asyncio
import contextlib
import errno
import os
import socket
from typing import Final

NETLINK_KOBJECT_UEVENT: Final = 15  # <linux/netlink.h>
FROM_KERNEL: Final = 1  # multicast group; what udev makes of it goes to group 2
EVENT_BYTES: Final = 8192  # kernel: 2048 of environment, and the device's path before it


class CapacityChange:
    """The next change of a block device; plays `image.watch.Watch`, armed when made.

    Costs a wake-up for every device of the host that comes, changes or goes, and nothing else.
    """

    def __init__(self, number: int) -> None:
        """Listen for the device `number`.  Raises OSError where that is not allowed."""
        self._device = {
            b"ACTION=change",
            b"SUBSYSTEM=block",
            b"MAJOR=%d" % os.major(number),
            b"MINOR=%d" % os.minor(number),
        }
        with contextlib.ExitStack() as undo:
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            sock = socket.socket(socket.AF_NETLINK, kind, NETLINK_KOBJECT_UEVENT)
            undo.callback(sock.close)
            sock.bind((0, FROM_KERNEL))
            self._sock = sock
            undo.pop_all()

    async def arm(self) -> None:
        """Do nothing: events that nobody waits for stay in the socket."""

    async def wait(self) -> None:
        """Return once the device has changed."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                event = await loop.sock_recv(self._sock, EVENT_BYTES)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return  # some were lost: ours may have been among them
            if self._device <= set(event.split(b"\0")):
                return

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()
