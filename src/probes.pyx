# SPDX-License-Identifier: Apache-2.0
"""Doors for tests into the data path's inline functions; no part of a release."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import os

from blk.layouts cimport BlkRange
from blk.limits cimport BlkLimits, MAX_RANGES
from blk.operation cimport Operation, parse_request
from figures.slot cimport Slot
from inflight.packed cimport record_packed
from inflight.record cimport link, settle, walk_again
from inflight.recovery cimport recover
from inflight.region cimport Again, Inflight, MAX_ENTRIES, is_recorded
from inflight.split cimport record_split
from sys.eventfds cimport bind_signal, end_signal
from sys.uring cimport (
    IORING_OP_FSYNC, IORING_SETUP_R_DISABLED, enable_uring, io_uring, io_uring_cqe,
    io_uring_get_sqe, io_uring_peek_batch_cqe, io_uring_prep_fsync, io_uring_prep_msg_ring,
    io_uring_queue_exit, io_uring_queue_init, io_uring_register_eventfd, io_uring_sqe,
    io_uring_submit_and_wait, operation,
)
from virtio.dirtylog cimport DirtyLog, RingLog, mark, mark_areas, mark_segments
from virtio.guestmem cimport GuestMemory, Region, guest_address
from virtio.iotlb cimport (
    Iotlb, MOST_REMOVED, WALK_FOR_LAST_BYTES, WALK_FOR_MISSING, WALK_WHOLE, forget, iotlb_bytes,
    lay_out_iotlb, learn,
)
from virtio.packed cimport is_no_fresh_ring, is_untouched, take_packed
from virtio.split cimport take_split, walk_split
from virtio.virtq cimport Chain, Segment, UsedChain, Virtq, event_passed
from virtio.virtqueue cimport publish, rearm, start, suppress, vring_base
from worker.notify cimport call_driver, leave_call
from worker.state cimport Worker, next_sqe, submit_queued
from worker.states cimport (
    BREAK, BROKEN, LOSE, LOST, PLACE, RUNNING, SETTLE, START, START_BROKEN, STOP, STOPPED, STOPPING,
    VringEvent, VringState, WAIT, WAITING, state_after,
)
from worker.vring cimport Vring

cdef enum:
    MAX_REGIONS = 8
    MAX_SEGMENTS = 2048
    NO_SUCH_FLAG = 1 << 7       # of a submission entry


cdef class Log:
    """A dirty log in a bytearray, which must stay as long as it is."""

    cdef DirtyLog log
    cdef object bits

    def __init__(self, bits):
        cdef uint8_t[::1] view = bits
        self.bits = view
        self.log.bits, self.log.pages = &view[0], 8 * len(bits)

    def mark(self, uint64_t address, uint64_t length):
        """Mark the pages of these bytes: whether the log has them all."""
        return bool(mark(&self.log, address, length))


cdef class Guest:
    """Guest memory of a few regions, given as (guest address, bytearray), and one ring in it.

    The ring's parts lie at guest addresses `desc`, `avail` and `used`; of a packed ring the
    latter two are the driver's and the device's event suppression structures.
    """

    cdef Region regions[MAX_REGIONS]
    cdef Region by_base[MAX_REGIONS]
    cdef GuestMemory memory
    cdef Virtq vq
    cdef Segment segments[MAX_SEGMENTS]
    cdef dict entries           # id of a chain in flight -> its entry of a recorded packed ring
    cdef object region
    cdef list buffers           # (guest address, bytearray), kept alive
    cdef Inflight inflight
    cdef uint16_t links[MAX_ENTRIES]
    cdef uint16_t lasts[MAX_ENTRIES]
    cdef Again again[MAX_ENTRIES]
    cdef Iotlb *iotlb           # NULL: addresses are the guest's own
    cdef const GuestMemory *addresses   # by which chains are walked

    def __init__(self, regions, *, int size, uint64_t desc, uint64_t avail, uint64_t used,
                 bint packed=False, bint indirect=True, bint event_idx=False,
                 int longest_chain=0):
        cdef uint8_t[::1] view
        self.buffers = sorted(regions)
        self.entries = {}
        self.memory.regions = self.regions
        self.memory.count = len(self.buffers)
        for i, (address, data) in enumerate(self.buffers):
            view = data
            self.regions[i].guest_address = address
            self.regions[i].size = len(data)
            self.regions[i].base = &view[0]
        order = sorted((<size_t>self.regions[i].base, i) for i in range(self.memory.count))
        for i, (_, number) in enumerate(order):
            self.by_base[i] = self.regions[<int>number]
        self.memory.by_base = self.by_base
        self.addresses = &self.memory
        memset(&self.vq, 0, sizeof(self.vq))
        self.vq.size = size
        self.vq.longest_chain = max(size, longest_chain)
        self.vq.indirect, self.vq.event_idx = indirect, event_idx
        self.vq.packed = packed
        self.vq.desc = self.at(desc)
        self.vq.driver = self.at(avail)
        self.vq.device = self.at(used)

    def __dealloc__(self):
        free(self.iotlb)

    def go_behind_iommu(self, uint32_t capacity):
        """Have addresses be IOVAs, of which up to `capacity` ranges can be known."""
        free(self.iotlb)
        self.iotlb = lay_out_iotlb(calloc(1, iotlb_bytes(capacity + 1, 1 << 14)), capacity + 1)
        self.addresses = &self.iotlb.memory

    def learn(self, uint64_t iova, uint64_t size, uint64_t address, uint32_t access=3):
        """Have `size` bytes at an IOVA lie at a guest address."""
        cdef Region range
        range.guest_address, range.size, range.base = iova, size, self.at(address)
        learn(self.iotlb, &self.memory, &range, access)
        self.vq.near = 0

    def forget(self, uint64_t first, uint64_t last):
        """Forget what is known of some IOVAs: the (guest address, size) of each range, or None."""
        self.iotlb.removed_count, self.iotlb.has_dropped = 0, False
        forget(self.iotlb, first, last, True)
        self.vq.near = 0
        if self.iotlb.removed_count > MOST_REMOVED or self.iotlb.has_dropped:
            return None
        return [
            (self.address_of(self.iotlb.removed[i].base), self.iotlb.removed[i].size)
            for i in range(self.iotlb.removed_count)
        ]

    def known(self):
        """What is known, in order: (IOVA, size, guest address, access) of each range."""
        found, left = [], [self.iotlb.root]
        while left:
            node = left.pop()
            if node:
                r = self.iotlb.ranges[<uint32_t>node]
                n = self.iotlb.nodes[<uint32_t>node]
                found.append(
                    (r.guest_address, r.size, self.address_of(r.base), n.access)
                )
                left += [n.left, n.right]
        return sorted(found)

    def missing(self):
        """What the last walk lacked: (IOVA of a page, access)."""
        return self.iotlb.missing.iova, self.iotlb.missing.access

    def all_missing(self, uint16_t head):
        """All that the split chain lacks: (IOVA of a page, access) each."""
        cdef Chain chain
        chain.id, self.iotlb.found_count, self.iotlb.walk = head, 0, WALK_FOR_MISSING
        walk_split(&self.vq, self.addresses, self.segments, MAX_SEGMENTS, &chain)
        self.iotlb.walk = WALK_WHOLE
        return [
            (self.iotlb.found[i].iova, self.iotlb.found[i].access)
            for i in range(self.iotlb.found_count)
        ]

    def last_bytes(self, uint16_t head):
        """Where the last byte of each buffer of the split chain is, None where it is missing."""
        cdef Chain chain
        chain.id, self.iotlb.walk = head, WALK_FOR_LAST_BYTES
        rc = walk_split(&self.vq, self.addresses, self.segments, MAX_SEGMENTS, &chain)
        self.iotlb.walk = WALK_WHOLE
        check(rc)
        return [
            None if self.segments[i].base == NULL
            else self.address_of(self.segments[i].base + self.segments[i].len - 1)
            for i in range(chain.segments)
        ]

    def is_to_fail(self):
        """Whether the last walk ended since a buffer lies in too many pieces."""
        return bool(self.iotlb.missing.is_last)

    cdef uint64_t address_of(self, const uint8_t *base) except? 0:
        cdef uint64_t address = 0
        if not guest_address(&self.memory, base, &address):
            raise ValueError("mapped nowhere")
        return address

    cdef uint8_t *at(self, uint64_t address) except NULL:
        for i in range(self.memory.count):
            if 0 <= address - self.regions[i].guest_address < self.regions[i].size:
                return self.regions[i].base + (address - self.regions[i].guest_address)
        raise ValueError(f"{address:#x} is in no region")

    def walk(self, uint16_t head, uint32_t room=MAX_SEGMENTS):
        """The split chain's segments as (guest address, length, device writes)."""
        cdef Chain chain
        chain.id = head
        check(walk_split(&self.vq, self.addresses, self.segments, room, &chain))
        return self.resolved(&chain)

    def log_chain(self, uint16_t head, Log log):
        """Mark all buffers of the split chain in `log`: whether it has bits for them."""
        cdef Chain chain
        chain.id = head
        check(walk_split(&self.vq, &self.memory, self.segments, MAX_SEGMENTS, &chain))
        return bool(mark_segments(&log.log, &self.memory, self.segments, chain.segments))

    def log_areas(self, pieces, Log log):
        """Mark the areas of a ring that we write, (guest address, length) each piece of them."""
        cdef RingLog ring
        ring.count = len(pieces)
        for i, (address, length) in enumerate(pieces):
            ring.pieces[i].address, ring.pieces[i].length = address, length
        return bool(mark_areas(&log.log, &ring))

    cdef list resolved(self, const Chain *chain):
        return [self.describe(&self.segments[i]) for i in range(chain.segments)]

    cdef tuple describe(self, const Segment *s):
        for i in range(self.memory.count):
            if self.regions[i].base <= s.base < self.regions[i].base + self.regions[i].size:
                address = self.regions[i].guest_address + (s.base - self.regions[i].base)
                return (address, s.len, bool(s.device_writes))
        raise AssertionError("a segment outside guest memory")

    def parse(self, uint16_t head, *, uint64_t capacity, uint32_t block_size=512,
              bint read_only=False, uint32_t max_sectors=0, uint32_t max_ranges=4):
        """What the request at `head` becomes, as a dict; OSError if it breaks the ring."""
        cdef Chain chain
        cdef BlkLimits limits
        cdef BlkRange ranges[MAX_RANGES]
        cdef Operation op
        chain.id = head
        check(walk_split(&self.vq, &self.memory, self.segments, MAX_SEGMENTS, &chain))
        memset(&limits, 0, sizeof(limits))
        limits.capacity, limits.block_mask = capacity, block_size - 1
        limits.read_only = read_only
        limits.max_discard_sectors = limits.max_zero_sectors = max_sectors
        limits.max_ranges = max_ranges
        memcpy(limits.serial, b"serial-of-20-letters", 20)
        check(parse_request(
            &limits, self.segments, chain.segments, &op, ranges, &self.vq.flaw
        ))
        return {
            "kind": op.io.kind, "status": op.status, "offset": op.io.offset,
            "length": op.io.length, "ranges": op.ranges, "written": op.written,
            "data": [self.describe(&op.io.data[i]) for i in range(op.io.data_count)],
        }

    def take(self):
        """The next available chain as (id, descriptors, segments), or None."""
        cdef Chain chain
        cdef int rc
        if self.vq.packed:
            rc = take_packed(&self.vq, self.addresses, self.segments, MAX_SEGMENTS, &chain)
        else:
            rc = take_split(&self.vq, self.addresses, self.segments, MAX_SEGMENTS, &chain)
        if check(rc) == 0:
            return None
        if is_recorded(&self.inflight):
            if self.vq.packed:
                check(record_packed(&self.inflight, &self.vq, &chain))
                self.entries[chain.id] = chain.entry
            else:
                record_split(&self.inflight, &chain)
        return chain.id, chain.descriptors, self.resolved(&chain)

    def give_back(self, *chains, steps=3):
        """Publish chains, ids or (id, descriptors), at once: whether the driver wants a call.

        Where they are recorded, a death after 1 or 2 of the 3 `steps` can be played.
        """
        cdef UsedChain used[MAX_SEGMENTS]
        cdef Inflight *f = &self.inflight
        cdef bint recorded = is_recorded(f), wanted = False
        cdef uint32_t count = len(chains)
        for i, chain in enumerate(chains):
            used[i].id, used[i].descriptors = chain if isinstance(chain, tuple) else (chain, 1)
            used[i].written = 1
            used[i].entry = self.entries.pop(used[i].id, 0)
        if recorded:
            link(f, &self.vq, used, count)
        if steps > 1:
            wanted = publish(&self.vq, used, count)
        if steps > 2 and recorded:
            settle(f, &self.vq, used, count)
        return bool(wanted)

    def record_in(self, region, uint32_t entries):
        """Record what is in flight in this bytearray, from the next start on."""
        cdef uint8_t[::1] view = region
        self.region = region
        self.inflight.region, self.inflight.entries = &view[0], entries
        self.inflight.next, self.inflight.last = self.links, self.lasts
        self.inflight.again = self.again

    def recover(self, uint32_t base):
        """Start at a base: what is to be carried out again, (entry, descriptors) each."""
        self.start(base)
        check(recover(&self.inflight, &self.vq, base, False))
        return [
            (self.again[i].entry, self.again[i].descriptors)
            for i in range(self.inflight.again_count)
        ]

    def walk_again(self, uint32_t number):
        """Chain `number` of those to be carried out again, as `take` gives it."""
        cdef Chain chain
        cdef const Again *again = &self.again[number]
        check(walk_again(
            &self.inflight, &self.vq, self.addresses, again, self.segments, MAX_SEGMENTS, &chain
        ))
        if self.vq.packed:
            self.entries[chain.id] = again.entry
        return chain.id, chain.descriptors, self.resolved(&chain)

    def suppress(self):
        """Have the driver not kick."""
        suppress(&self.vq)

    def rearm(self):
        """Ask for kicks again: whether there is more already."""
        return bool(rearm(&self.vq))

    def start(self, uint32_t base):
        """Begin at a base as SET_VRING_BASE gives it; the used index is in the ring."""
        check(start(&self.vq, base))

    def flaw(self):
        """What was found wrong last: kind, where, value and limit."""
        return self.vq.flaw.kind, self.vq.flaw.where, self.vq.flaw.value, self.vq.flaw.limit

    def is_no_fresh_ring(self):
        """Whether a packed ring that is to begin anew was left somewhere else."""
        return bool(is_no_fresh_ring(&self.vq))

    def is_untouched(self):
        """Whether nothing of a packed ring was ever used."""
        return bool(is_untouched(&self.vq))

    def base(self):
        """Where the ring goes on, as GET_VRING_BASE gives it."""
        return vring_base(&self.vq)


cdef class Calls:
    """A worker that calls one ring's driver, and whose kernel stops at an entry it refuses."""

    cdef Worker worker
    cdef Vring vring
    cdef Slot slot

    def __init__(self, int call_fd):
        self.worker.slot = &self.slot
        self.worker.submitted = 1
        check(io_uring_queue_init(8, &self.worker.uring, 0))
        check(bind_signal(&self.vring.call.signal, call_fd))

    def __dealloc__(self):
        io_uring_queue_exit(&self.worker.uring)
        end_signal(&self.vring.call.signal)

    def call(self):
        """Call the driver with the next submission."""
        call_driver(&self.worker, &self.vring)

    def queue_refused(self):
        """Queue an entry that the kernel refuses."""
        cdef io_uring_sqe *sqe = next_sqe(&self.worker)
        io_uring_prep_msg_ring(sqe, -1, 0, 0, 0)
        sqe.flags = NO_SUCH_FLAG

    def submit(self):
        """Give the kernel what is queued, once: how many entries it took."""
        return check(submit_queued(&self.worker))

    def leave(self):
        """Have no more to do with the call eventfd."""
        leave_call(&self.worker, &self.vring)


def try_restricted(bint allows):
    """What a ring answers that may sync files, or do nothing: to a sync of a file that is none.

    With whether the kernel restricts it, and what it answers to the registration of an eventfd.
    """
    cdef io_uring ring
    cdef io_uring_cqe *cqe
    cdef int restricted, registered
    check(io_uring_queue_init(8, &ring, IORING_SETUP_R_DISABLED))
    try:
        restricted = check(enable_uring(&ring, operation(IORING_OP_FSYNC) if allows else 0, 0, 0))
        io_uring_prep_fsync(io_uring_get_sqe(&ring), -1, 0)
        check(io_uring_submit_and_wait(&ring, 1))
        io_uring_peek_batch_cqe(&ring, &cqe, 1)
        registered = io_uring_register_eventfd(&ring, -1)
        return bool(restricted), -cqe.res, -registered
    finally:
        io_uring_queue_exit(&ring)


cdef int check(int rc) except -1:
    """`rc`, unless it is an error."""
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


def passed(uint16_t event, uint16_t now, uint16_t before):
    """Whether `event` was crossed between two indices."""
    return bool(event_passed(event, now, before))


STATES = {
    "stopped": STOPPED, "running": RUNNING, "waiting": WAITING, "broken": BROKEN, "lost": LOST,
    "stopping": STOPPING,
}
EVENTS = {
    "start": START, "start broken": START_BROKEN, "wait": WAIT, "break": BREAK, "lose": LOSE,
    "place": PLACE, "stop": STOP, "settle": SETTLE,
}


def state_changes():
    """Each event that changes the state of a vring: (state, event, state afterwards)."""
    names = {number: name for name, number in STATES.items()}
    for name, state in STATES.items():
        for event, number in EVENTS.items():
            after = state_after(<VringState><int>state, <VringEvent><int>number)
            if after != state:
                yield name, event, names[after]
