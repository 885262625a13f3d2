# SPDX-License-Identifier: Apache-2.0
"""Where a vring lies in the memory that is mapped here."""

from typing import Final

from blkd import ring
from blkd.dataplane.areas import Areas, Piece
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
    parts = [areas.pieces(area) for area in areas.parts]
    if memory is None or any(pieces is None for pieces in parts):
        return None
    found = [_mapped(memory, pieces or []) for pieces in parts]
    if not all(found):
        return None
    joined = [_join(pieces) for pieces in found]
    where = [address for address, _ in joined]
    if not _is_aligned(where, setup):
        raise Unplaceable("its IOMMU has it misaligned")
    logged: tuple[Piece, ...] = ()
    if setup.logged_at is not None:
        written = [parts[0], parts[2]] if setup.packed else [parts[2]]
        logged = _in_guest_memory(memory, [piece for part in written for piece in part or []])
    return where[0], where[1], where[2], logged, [kept for _, kept in joined]


def _is_aligned(found: list[int], setup: VringSetup) -> bool:
    return all(
        at % alignment == 0 for at, (_, _, alignment) in zip(found, setup.parts, strict=True)
    )


def _mapped(memory: ring.MemoryMap, pieces: list[Piece]) -> list[Piece]:
    """Where the front end's pieces are mapped here, in as few as they can be; none if not all."""
    found: list[Piece] = []
    for address, size in pieces:
        here = memory.pieces(address, size)
        if not here:
            return []
        for at, length in here:
            if found and sum(found[-1]) == at:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((at, length))
    return found


def _join(pieces: list[Piece]) -> tuple[int, object]:
    """Where pieces are mapped as one, and what keeps them so.  Raises Unplaceable."""
    if len(pieces) == 1:
        return pieces[0][0], None
    if any(at % ring.PAGE for at, _ in pieces[1:]) or any(
        (at + size) % ring.PAGE for at, size in pieces[:-1]
    ):
        raise Unplaceable("its IOMMU has it in pieces that are no pages")
    try:
        joined = ring.Joined(pieces)
    except OSError as error:
        raise Unplaceable(
            f"its IOMMU has its pages in {len(pieces)} places of memory that cannot be mapped as"
            f" one: {error.strerror}"
        ) from error
    return joined.address, joined


def _in_guest_memory(memory: ring.MemoryMap, pieces: list[Piece]) -> tuple[Piece, ...]:
    """The same pieces by guest addresses, in as few as they can be.  Raises Unplaceable."""
    found: list[Piece] = []
    for address, size in pieces:
        at = memory.guest_address(address)
        if found and sum(found[-1]) == at:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((at, size))
    if len(found) > LOG_PIECES:
        raise Unplaceable(f"its IOMMU has it in {len(found)} pieces, too many to be logged")
    return tuple(found)
