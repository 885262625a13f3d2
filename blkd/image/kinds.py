# SPDX-License-Identifier: Apache-2.0
"""The kinds of images, distinguished by how their name begins; a path is a raw image.

Another kind is a file that plays `base.Image`, and a line in KINDS.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from blkd.errors import ImageError
from blkd.image import faulty, null
from blkd.image.base import Image, Opening
from blkd.image.faulty import FaultyImage
from blkd.image.null import NullImage
from blkd.image.raw import RawImage, open_raw


@dataclass(frozen=True, slots=True)
class Kind:
    """How an image of one kind comes about; each raises ImageError where it cannot be served."""

    open: Callable[[str, Opening], Awaitable[Image]]
    adopt: Callable[[str, int | None, Opening, bool], Image]
    """With what its `lent` gave in the process that has it open, which is taken; and whether that
    one has it locked."""


async def open_image(name: str, opening: Opening) -> Image:
    """The image called `name`; the caller closes it.  For what it raises see `raw.open_raw`.

    `null:SIZE` is nothing at all, `faulty:RULES:IMAGE` an image that fails on order; a file
    of such a name is `./null:SIZE`.
    """
    return await kind_of(name).open(name, opening)


def adopt_image(name: str, lent: int | None, opening: Opening, *, is_locked: bool) -> Image:
    """The image called `name`, which another process has open and perhaps locked.

    `lent` is what that one's image lends, taken.
    """
    return kind_of(name).adopt(name, lent, opening, is_locked)


def path_of(name: str) -> str | None:
    """The path of what an image's name makes a process open; None where that is nothing."""
    if name.startswith(null.PREFIX):
        return None
    if name.startswith(faulty.PREFIX):
        return path_of(faulty.split(name)[1])
    return name


def kind_of(name: str) -> Kind:
    """The kind of image that a name is one of."""
    return next((kind for prefix, kind in KINDS.items() if name.startswith(prefix)), RAW)


def _adopt_raw(name: str, lent: int | None, opening: Opening, is_locked: bool) -> Image:  # noqa: FBT001 - as Kind has it
    if lent is None:
        raise ImageError(f"{name}: came without a descriptor")
    return RawImage.adopt(name, lent, opening, is_locked=is_locked)


async def _open_null(name: str, opening: Opening) -> Image:
    return NullImage(
        name, read_only=opening.read_only, logical_block_size=opening.logical_block_size
    )


def _adopt_null(name: str, lent: int | None, opening: Opening, _is_locked: bool) -> Image:  # noqa: FBT001 - as Kind has it
    if lent is not None:
        os.close(lent)
        raise ImageError(f"{name}: came with a descriptor")
    return NullImage(
        name, read_only=opening.read_only, logical_block_size=opening.logical_block_size
    )


async def _open_faulty(name: str, opening: Opening) -> Image:
    faults, inner = faulty.split(name)
    return FaultyImage(name, await open_image(inner, opening), faults)


def _adopt_faulty(name: str, lent: int | None, opening: Opening, is_locked: bool) -> Image:  # noqa: FBT001 - as Kind has it
    faults, inner = faulty.split(name)
    return FaultyImage(name, adopt_image(inner, lent, opening, is_locked=is_locked), faults)


RAW = Kind(open_raw, _adopt_raw)
KINDS: Final = {
    null.PREFIX: Kind(_open_null, _adopt_null),
    faulty.PREFIX: Kind(_open_faulty, _adopt_faulty),
}
"""By how their names begin."""
