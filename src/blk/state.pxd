# SPDX-License-Identifier: Apache-2.0
"""What a block device keeps for a worker, beside what the worker has itself."""

from libc.stdint cimport uint64_t

from blk.limits cimport BlkLimits
from blk.request cimport BlkVring
from engine.engine cimport Engine, IO_KINDS
from worker.state cimport Device, Worker


cdef struct Failure:
    # What became of the requests of one kind that could not be carried out.
    uint64_t count              # worker
    uint64_t round              # worker: in which the last one was reported
    uint64_t offset             # worker: bytes; of the one reported
    int error                   # worker: likewise: -errno, or 0 at the image's end


cdef struct Blk:
    Device device               # has to be the first
    BlkLimits limits            # worker, replaced by CMD_CONFIGURE
    BlkVring *vrings            # `device.vrings` of them
    Failure failures[IO_KINDS]
    uint64_t failure_round      # control thread: each one has the first of a kind reported
    Engine engine               # that does its I/O


cdef inline Blk *blk_of(const Worker *w) noexcept nogil:
    return <Blk *>w.device
