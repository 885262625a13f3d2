# SPDX-License-Identifier: Apache-2.0
"""Guest memory that is gone while it is in use: a front end has shrunk the file behind it."""

import asyncio
import os
from collections.abc import Callable

from blkd import ring


class MemoryFaults:
    """Calls `on_fault` on the event loop for each access to memory that was not there.

    The access itself is made good, by pages of zeroes, but the front end has broken its word.
    """

    def __init__(self, on_fault: Callable[[], None]) -> None:
        self._on_fault = on_fault
        self._fd = ring.fault_eventfd()  # the extension's, one for the whole process
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def quit(self) -> None:
        """Call nobody any more."""
        asyncio.get_running_loop().remove_reader(self._fd)

    def _read(self) -> None:
        os.eventfd_read(self._fd)
        self._on_fault()
