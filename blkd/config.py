# SPDX-License-Identifier: Apache-2.0
"""The settings of an export: one set of models for the command line, the API and files."""

from typing import Annotated, Literal

import msgspec

from blkd.virtio.device import MAX_QUEUE_SIZE

CacheMode = Literal["none", "writeback", "writethrough"]

MAX_QUEUES = 64
MIN_QUEUE_SIZE = 4  # a request takes three descriptors
SERIAL_BYTES = 20  # VIRTIO_BLK_ID_BYTES (virtio 1.3, 5.2.6)


class ExportConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one image is to be served."""

    image: str
    """Path of a raw image or a block device."""
    socket: str | None = None
    """Path of the listening UNIX socket; None when a descriptor is handed over instead."""
    name: str
    read_only: bool = False
    queues: Annotated[int, msgspec.Meta(ge=1, le=MAX_QUEUES)] = 4
    queue_size: Annotated[int, msgspec.Meta(ge=MIN_QUEUE_SIZE, le=MAX_QUEUE_SIZE)] = 256
    """Ring size that front ends are expected to choose, in descriptors, a power of two: the
    segment limit follows from it.  Any up to MAX_QUEUE_SIZE is served."""
    serial: Annotated[str, msgspec.Meta(max_length=SERIAL_BYTES)] | None = None
    """What the guest sees as the disk's serial; None derives one from the image."""
    cache: CacheMode = "none"
    """`none`: O_DIRECT, write-back; `writeback`: the host's page cache, write-back;
    `writethrough`: the host's page cache, each write durable."""
    logical_block_size: Literal[512, 4096] | None = None
    """None takes the smallest that the image's file system serves."""
    discard: bool = True
    max_discard_segments: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    control: str | None = None
    """Path of the control API's UNIX socket."""
