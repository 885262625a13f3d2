# SPDX-License-Identifier: Apache-2.0
"""The data path's engines, by how an image is to be read and written."""

from typing import assert_never

from blkd import block
from blkd.errors import DataPlaneError
from blkd.image.engine import FaultyIo, FileIo, ForeignIo, Io, NullIo


def engine_for(io: Io, syncs: block.SyncState) -> block.Engine:
    """One worker's engine; all workers of an image share what is known of its `syncs`.

    Raises DataPlaneError where io_uring cannot be used.
    """
    match io:
        case FileIo():
            return block.FileEngine(
                fd=io.fd,
                sync_fd=io.sync_fd,
                direct=io.direct,
                at_once=io.at_once,
                nowait=io.nowait,
                block_size=io.block_size,
                memory_alignment=io.memory_alignment,
                discard_by_command=discards_by_command(io),
                syncs=syncs,
            )
        case NullIo():
            return block.NullEngine()
        case ForeignIo():
            return block.ForeignEngine(io.functions)
        case FaultyIo():
            return block.FaultyEngine(engine_for(io.inner, syncs), io.faults)
        case _:
            assert_never(io)


def discards_by_command(io: Io) -> bool:
    """Whether io_uring discards on the block device that an image is (Linux 6.12).

    Nothing is discarded.  Raises DataPlaneError as `probe.probe_io_uring`.
    """
    if isinstance(io, FaultyIo):
        return discards_by_command(io.inner)
    if not (isinstance(io, FileIo) and io.may_discard_by_command):
        return False
    try:
        return block.probe_discard(io.fd)
    except OSError as error:
        raise DataPlaneError(f"io_uring cannot be used: {error.strerror}") from error
