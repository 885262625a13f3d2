# SPDX-License-Identifier: Apache-2.0
"""Where everything lies in a statistics area, as `src/figures/slot.pxd` has it; a test compares.

An area is a header, the page of the export's rates (`limits_page`), and a slot for each worker.
All are 64-bit words but where it is said.
"""

import struct
from typing import Final

from blkd.statistics.figures import BUCKETS, OPERATIONS, SIZE_CLASSES
from blkd.statistics.limits_page import PAGE_BYTES

MAGIC: Final = b"blkdstat"
LAYOUT: Final = 1
"""Another one if anything here changes: no version uses an area of a layout that it does not know.
"""
WORD: Final = 8

# ---- the header ----

HEADER_BYTES: Final = 4096
HEADER: Final = struct.Struct("=8sQQ")
"""Magic, layout, and when the area was made, in ns of CLOCK_MONOTONIC."""
SLOTS_IN_USE: Final = 64
"""Bytes before it; from there on the process's control thread writes."""
CONNECTED: Final = 72
SIZE: Final = 80

# ---- the export's rates ----

LIMITS_AT: Final = HEADER_BYTES

# ---- slots ----

SLOTS: Final = 64  # workers that an export can have
SLOTS_AT: Final = LIMITS_AT + PAGE_BYTES
CELLS: Final = len(OPERATIONS) * len(SIZE_CLASSES)

# Words of a slot before each.
IN_FLIGHT: Final = 0
OLDEST: Final = 1
THROTTLED: Final = 2
HELD: Final = 3
BUSY: Final = 4
CPU: Final = 5
ERRORS: Final = 8  # as the fields of `Errors`
EVENTS: Final = 16  # as the fields of `Events`
COUNTS: Final = 32  # of each cell
BYTES: Final = COUNTS + CELLS  # likewise

HEAD_BYTES: Final = 4096  # of a slot, before its cells
CELL_BYTES: Final = 1024
SLOT_BYTES: Final = HEAD_BYTES + CELLS * CELL_BYTES

# Words of a cell before each.
SUMS: Final = 0  # of ring, throttle and disk
RING: Final = 4
THROTTLE: Final = RING + BUCKETS
DISK: Final = THROTTLE + BUCKETS

AREA_BYTES: Final = SLOTS_AT + SLOTS * SLOT_BYTES
