# SPDX-License-Identifier: Apache-2.0
"""What a block device keeps for a worker, beside what the worker has itself."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from blk.budgets cimport DIRECTIONS, PACES, Paces
from blk.limits cimport BlkLimits
from blk.limits_page cimport Line, LimitsPage
from blk.request cimport BlkVring, InFlight, Run
from engine.engine cimport Engine, IO_KINDS, IoKind, IoQueue
from figures.measuring cimport Times
from worker.state cimport Device, Worker


cdef struct Failure:
    # What became of the requests of one kind that could not be carried out.
    uint64_t count              # worker
    uint64_t round              # worker: in which the last one was reported
    uint64_t offset             # worker: bytes; of the one reported
    int error                   # worker: likewise: -errno, or 0 at the image's end


cdef struct Held:
    # The requests that the error policy holds, see holding.pxd.
    IoQueue queue               # worker: `queued` of them; others are being tried again
    uint32_t queued             # worker
    uint32_t count              # worker, the control thread reads it: in the queue or tried again
    uint32_t no_space           # likewise: in the queue because the image has no space
    uint64_t since              # likewise: when the first one came, by `now`
    bint is_unreported          # worker: ... and it was not reported yet
    # Worker: of the one held last
    IoKind kind
    int error                   # -errno, or 0 at the image's end
    uint64_t offset             # bytes


cdef struct Throttle:
    # How a worker keeps rates; all of it the worker's.
    Paces paces[DIRECTIONS]
    Line lines[PACES]           # by the numbers of rates, as the page last had them
    uint64_t grants             # the page's, when they were read
    bint is_limited             # there is a rate to be kept
    uint32_t queues             # of vrings in which something waits
    bint has_barred             # a vring is barred, since it owes much
    int grants_fd               # eventfd: the supervisor divides anew; -1 without one
    uint64_t asked              # nanoseconds: when it was last signalled


cdef enum:
    SLOW_KEPT = 32              # a power of two


cdef struct SlowRequest:
    uint32_t ring               # the device's number
    uint32_t type               # virtio-blk's
    uint64_t offset             # bytes
    uint64_t bytes              # that it moved
    Times times
    int32_t result              # 0, -errno or PAST_END
    bint bounced
    bint durable                # it waited until the disk has it


cdef struct SlowRequests:
    SlowRequest kept[SLOW_KEPT]
    uint32_t written            # worker
    uint32_t taken              # control thread
    uint32_t is_reported        # worker; the control thread takes that back before it takes them
    uint64_t missed             # worker: those for which there was no room


cdef struct Blk:
    Device device               # has to be the first
    BlkLimits limits            # worker, replaced by CMD_CONFIGURE
    BlkVring *vrings            # `device.vrings` of them
    Failure failures[IO_KINDS]
    Held held
    SlowRequests slow
    Run run                     # worker: not accounted yet
    InFlight in_flight          # worker
    uint64_t failure_round      # control thread: each one has the first of a kind reported
    LimitsPage *page            # of all workers, and outlives them
    Throttle throttle           # what this one makes of it
    Engine engine               # that does its I/O


cdef inline Blk *blk_of(const Worker *w) noexcept nogil:
    return <Blk *>w.device
