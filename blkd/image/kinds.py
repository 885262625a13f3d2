# SPDX-License-Identifier: Apache-2.0
"""The kinds of images, told apart by how their name begins; a path is a raw image."""

import os

from blkd.errors import ImageError
from blkd.image import faulty, null
from blkd.image.base import Image
from blkd.image.engine import EngineChoice
from blkd.image.faulty import FaultyImage
from blkd.image.null import NullImage
from blkd.image.raw import ImageFormat, RawImage, open_raw


async def open_image(
    name: str,
    *,
    read_only: bool,
    direct: bool,
    logical_block_size: int | None,
    engine: EngineChoice,
    incoming: bool = False,
    workers: int = 1,
    image_format: ImageFormat | None = None,
) -> Image:
    """The image called `name`; the caller closes it.  For the rest see `raw.open_raw`.

    `null:SIZE` is nothing at all, `faulty:RULES:IMAGE` an image that fails on order; a file
    of such a name is `./null:SIZE`.
    """
    if name.startswith(faulty.PREFIX):
        faults, inner = faulty.split(name)
        opened = await open_image(
            inner,
            read_only=read_only,
            direct=direct,
            logical_block_size=logical_block_size,
            engine=engine,
            incoming=incoming,
            workers=workers,
            image_format=image_format,
        )
        return FaultyImage(name, opened, faults)
    if name.startswith(null.PREFIX):
        return NullImage(name, read_only=read_only, logical_block_size=logical_block_size)
    return await open_raw(
        name,
        read_only=read_only,
        direct=direct,
        logical_block_size=logical_block_size,
        engine=engine,
        incoming=incoming,
        workers=workers,
        image_format=image_format,
    )


def adopt_image(
    name: str,
    fd: int | None,
    *,
    read_only: bool,
    direct: bool,
    logical_block_size: int,
    engine: EngineChoice,
    held: bool,
    workers: int = 1,
) -> Image:
    """The image called `name`, which another process has open as `fd`, taken; None for null.

    `held` says whether it has it locked.
    """
    if name.startswith(faulty.PREFIX):
        faults, inner = faulty.split(name)
        adopted = adopt_image(
            inner,
            fd,
            read_only=read_only,
            direct=direct,
            logical_block_size=logical_block_size,
            engine=engine,
            held=held,
            workers=workers,
        )
        return FaultyImage(name, adopted, faults)
    if name.startswith(null.PREFIX):
        if fd is not None:
            os.close(fd)
            raise ImageError(f"{name}: came with a descriptor")
        return NullImage(name, read_only=read_only, logical_block_size=logical_block_size)
    if fd is None:
        raise ImageError(f"{name}: came without a descriptor")
    return RawImage.adopt(
        name,
        fd,
        read_only=read_only,
        direct=direct,
        logical_block_size=logical_block_size,
        engine=engine,
        held=held,
        workers=workers,
    )
