# SPDX-License-Identifier: Apache-2.0
"""Where a vring lies in the memory that is mapped here."""

from typing import Final

from blkd import ring
from blkd.dataplane.areas import Area, Areas, Piece
from blkd.vhost_user.vring_setup import DESC_BYTES, VringSetup

LOG_PIECES: Final = 8  # as src/virtio/dirtylog.pxd has it

Place = tuple[int, int, int, tuple[Piece, ...], object]
"""Where a vring's descriptors, its driver's and its device's area are mapped here; the pieces of
guest memory in which our writes to the first and the last are logged, (guest address, bytes) each;
and what has to be kept for as long as it lies there."""


class Unplaceable(Exception):
    """A vring lies where it cannot be served; the text says why."""


def place(memory: ring.MemoryMap | None, setup: VringSetup) -> Place | None:
    """Where a vring's three parts are mapped, or None if one of them is not, or is misaligned."""
    found = [memory.locate(at, size) if memory else 0 for at, size, _ in setup.parts]
    if memory is None or not (all(found) and _is_aligned(found, setup)):
        return None
    logged: list[Piece] = []
    if setup.logged_at is not None:
        logged = [(setup.logged_at, setup.parts[2][1])]
        if setup.packed:
            logged.append((memory.guest_address(setup.desc), DESC_BYTES * setup.size))
    return found[0], found[1], found[2], tuple(logged), None


def place_translated(
    memory: ring.MemoryMap | None, setup: VringSetup, areas: Areas
) -> Place | None:
    """Where a vring's three parts are mapped whose translations are `areas`; None as for `place`.

    Raises Unplaceable where they are all known, and still it cannot be served.
    """
    found = [_find(memory, areas, area) for area in areas.parts]
    if not all(found):
        return None
    joined = [_join([(at, size) for at, _, size in pieces]) for pieces in found]
    where = [address for address, _ in joined]
    if not _is_aligned(where, setup):
        raise Unplaceable("its IOMMU has it misaligned")
    logged: list[Piece] = []
    if setup.logged_at is not None:
        written = [*found[0], *found[2]] if setup.packed else found[2]
        logged = _merged([(at, size) for _, at, size in written])
    if len(logged) > LOG_PIECES:
        raise Unplaceable(f"its IOMMU has it in {len(logged)} pieces, too many to be logged")
    return where[0], where[1], where[2], tuple(logged), [kept for _, kept in joined]


def _find(memory: ring.MemoryMap | None, areas: Areas, area: Area) -> list[tuple[int, int, int]]:
    """The pieces of an area, as `MemoryMap.spans` has them; none where not all of it is known."""
    found: list[tuple[int, int, int]] = []
    for address, size in areas.pieces(area) or []:
        here = memory.spans(address, size) if memory else []
        if not here:
            return []
        found += here
    return found


def _is_aligned(found: list[int], setup: VringSetup) -> bool:
    return all(
        at % alignment == 0 for at, (_, _, alignment) in zip(found, setup.parts, strict=True)
    )


def _merged(pieces: list[Piece]) -> list[Piece]:
    """The same, in as few pieces as they can be."""
    found: list[Piece] = []
    for at, size in pieces:
        if found and sum(found[-1]) == at:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((at, size))
    return found


def _join(pieces: list[Piece]) -> tuple[int, object]:
    """Where pieces are mapped as one, and what keeps them so.  Raises Unplaceable."""
    if len(merged := _merged(pieces)) == 1:
        return merged[0][0], None
    if any(at % ring.PAGE for at, _ in pieces[1:]) or any(
        (at + size) % ring.PAGE for at, size in pieces[:-1]
    ):
        raise Unplaceable("its IOMMU has it in pieces that are no pages")
    try:
        joined = ring.Joined(pieces)
    except OSError as error:
        raise Unplaceable(
            f"its IOMMU has it in {len(merged)} places of memory that cannot be mapped as one:"
            f" {error.strerror}"
        ) from error
    return joined.address, joined
