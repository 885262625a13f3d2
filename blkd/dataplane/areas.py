# SPDX-License-Identifier: Apache-2.0
"""The parts of a vring behind an IOMMU: what is known of where they lie."""

from dataclasses import dataclass, replace
from typing import Final

from blkd.vhost_user.iotlb import Access, IotlbEntry
from blkd.vhost_user.vring_setup import VringSetup

PAGE: Final = 4096
"""Bytes: no IOMMU has smaller pages."""
BOTH: Final = Access.READ | Access.WRITE

Piece = tuple[int, int]
"""The front end's own address of something, and its bytes."""


@dataclass(frozen=True, slots=True)
class Area:
    """A part of a vring, at an IOVA, and what is to be done there."""

    iova: int
    size: int
    access: Access

    @property
    def end(self) -> int:
        """The IOVA behind it."""
        return self.iova + self.size


class Areas:
    """The areas of one vring, and the translations that are known of them.

    No more is remembered than their pages.
    """

    def __init__(self, setup: VringSetup) -> None:
        desc, driver, device = setup.parts
        self.parts = (
            Area(desc[0], desc[1], BOTH if setup.packed else Access.READ),
            Area(driver[0], driver[1], Access.READ),
            Area(device[0], device[1], BOTH),
        )
        """Descriptors, the driver's area and the device's area."""
        self._entries: list[IotlbEntry] = []

    @property
    def entries(self) -> tuple[IotlbEntry, ...]:
        """What is known."""
        return tuple(self._entries)

    def learn(self, entry: IotlbEntry) -> bool:
        """Note a translation: whether it tells anything new of these areas."""
        before = self._entries
        for area in self.parts:
            for piece in _cut(entry, *_pages(area.iova, area.end)):
                self._drop(piece.iova, piece.iova + piece.size)
                self._entries = sorted([*self._entries, piece], key=lambda known: known.iova)
        return self._entries != before

    def forget(self, iova: int, size: int) -> bool:
        """Forget the pages of a range: whether they have a part of these areas."""
        start, end = _pages(iova, iova + size)
        self._drop(start, end)
        return any(area.iova < end and start < area.end for area in self.parts)

    def _drop(self, start: int, end: int) -> None:
        kept: list[IotlbEntry] = []
        for entry in self._entries:
            kept += [*_cut(entry, entry.iova, start), *_cut(entry, end, entry.iova + entry.size)]
        self._entries = kept

    def pieces(self, area: Area) -> list[Piece] | None:
        """Where an area lies, piece by piece, or None where that is not all known."""
        found: list[Piece] = []
        at = area.iova
        while at < area.end:
            entry = self._find(at, area.access)
            if entry is None:
                return None
            size = min(area.end, entry.iova + entry.size) - at
            found.append((entry.user_address + at - entry.iova, size))
            at += size
        return found

    @property
    def missing(self) -> list[tuple[int, Access]]:
        """The pages of which something is not known, and what they are needed for."""
        return [
            (page, area.access)
            for area in self.parts
            for page in range(area.iova // PAGE * PAGE, area.end, PAGE)
            if not self._knows(area, page)
        ]

    def _knows(self, area: Area, page: int) -> bool:
        start, end = max(page, area.iova), min(page + PAGE, area.end)
        return self.pieces(replace(area, iova=start, size=end - start)) is not None

    def _find(self, iova: int, access: Access) -> IotlbEntry | None:
        for entry in self._entries:
            if entry.iova <= iova < entry.iova + entry.size and not access & ~entry.access:
                return entry
        return None


def _pages(start: int, end: int) -> tuple[int, int]:
    """The range of pages that has a range of IOVAs."""
    return start // PAGE * PAGE, -(-end // PAGE) * PAGE


def _cut(entry: IotlbEntry, start: int, end: int) -> list[IotlbEntry]:
    """What an entry says of a range, if it has a part of that."""
    start, end = max(start, entry.iova), min(end, entry.iova + entry.size)
    if start >= end:
        return []
    user_address = entry.user_address + start - entry.iova
    return [replace(entry, iova=start, size=end - start, user_address=user_address)]
