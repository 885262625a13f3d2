# SPDX-License-Identifier: Apache-2.0
"""Where a vring lies in the memory that is mapped here."""

from blkd import ring
from blkd.vhost_user.vring_setup import VringSetup

Place = tuple[int, int, int, tuple[int, int] | None]
"""Where a vring's descriptors, its driver's and its device's area are mapped here; and the guest
addresses at which our writes to the first and the last are logged, None for nowhere."""


def place(memory: ring.MemoryMap | None, setup: VringSetup) -> Place | None:
    """Where a vring's three parts are mapped, or None if one of them is not, or is misaligned."""
    found = [memory.locate(at, size) if memory else 0 for at, size, _ in setup.parts]
    aligned = all(
        at % alignment == 0 for at, (_, _, alignment) in zip(found, setup.parts, strict=True)
    )
    if memory is None or not (all(found) and aligned):
        return None
    log = None if setup.logged_at is None else (memory.guest_address(setup.desc), setup.logged_at)
    return found[0], found[1], found[2], log
