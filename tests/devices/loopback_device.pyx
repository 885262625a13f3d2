# SPDX-License-Identifier: Apache-2.0
"""A device that is no disk: what its driver sends on vring 1 it gets back on vring 0.

The vrings are numbered as those of net and vsock.  Vring 1 is eager, as long as there is room for
messages; vring 0 is served on demand: its buffers stay there until there is a message for one.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from sys.atomics cimport load_relaxed_u64
from sys.uring cimport io_uring_cqe
from virtio.dirtylog cimport mark_segments
from virtio.segments cimport give_bytes, readable_of, take_bytes
from virtio.virtq cimport Chain, Segment
from worker.fetching cimport fetch
from worker.logged cimport outrun_log
from worker.state cimport DEVICE_CAPSULE, Device, Worker, want
from worker.vring cimport Vring, bump, give_back

cdef enum:
    RECEIVE = 0                 # vrings
    TRANSMIT = 1
    MESSAGES = 16               # kept at a time
    MESSAGE_BYTES = 2048
    MOST = 1 << 15              # descriptors of a chain: it keeps none


cdef struct Message:
    uint32_t length
    uint8_t content[MESSAGE_BYTES]


cdef struct Loopback:
    Device device               # has to be the first
    uint8_t mask                # each byte comes back combined with it, by exclusive or
    uint64_t taken              # messages; the last `taken - delivered` are kept
    uint64_t delivered
    Message messages[MESSAGES]


cdef inline Loopback *loopback_of(const Worker *w) noexcept nogil:
    return <Loopback *>w.device


cdef inline int take_message(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Keep what the driver sends, and want a buffer for it."""
    cdef Loopback *l = loopback_of(w)
    cdef Message *m = &l.messages[l.taken % MESSAGES]
    cdef Segment *segments = w.segments
    cdef uint32_t readable = readable_of(segments, chain.segments)
    if r.wanted == 0:           # one of many that a back end had fetched before it died
        give_back(r, chain, 0)
        return 1
    m.length = take_bytes(&segments, &readable, m.content, MESSAGE_BYTES)
    bump(&l.taken, 1)
    r.wanted -= 1
    want(w, &w.vrings[RECEIVE], 1)
    give_back(r, chain, 0)
    return 1


cdef inline int deliver_message(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Put the oldest message into a buffer, as much as that takes, and want another from the driver.

    A buffer that a back end had fetched before it died is given back empty.
    """
    cdef Loopback *l = loopback_of(w)
    cdef Message *m = &l.messages[l.delivered % MESSAGES]
    cdef uint32_t readable = readable_of(w.segments, chain.segments), written = 0, i
    cdef Segment *room = w.segments + readable
    cdef uint32_t room_count = chain.segments - readable
    if l.delivered < l.taken:
        for i in range(m.length):
            m.content[i] ^= l.mask
        written = give_bytes(room, room_count, m.content, m.length)
        bump(&l.delivered, 1)
        r.wanted -= 1
        want(w, &w.vrings[TRANSMIT], 1)
    if w.log.of_data and not mark_segments(&w.log, w.view.memory, room, room_count):
        outrun_log(w, r)
    else:
        give_back(r, chain, written)
    return 1


# ---- what a worker calls ----

cdef int begin(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    return (deliver_message if r.number == RECEIVE else take_message)(w, r, chain)


cdef int serve(Worker *w, Vring *r) noexcept nogil:
    return fetch(w, r, deliver_message) if r.number == RECEIVE else fetch(w, r, take_message)


cdef void start(Worker *w, Vring *r) noexcept nogil:
    cdef uint32_t kept = <uint32_t>(loopback_of(w).taken - loopback_of(w).delivered)
    r.wanted = kept if r.number == RECEIVE else MESSAGES - kept


cdef void configure(Worker *w, const void *what) noexcept nogil:
    loopback_of(w).mask = (<const uint8_t *>what)[0]


cdef void complete(Worker *w, io_uring_cqe **cqes, unsigned count) noexcept nogil:
    pass                        # it asks the kernel for nothing


cdef void nothing(Worker *w) noexcept nogil:
    pass


cdef bint quit(Worker *w) noexcept nogil:
    return False


cdef class LoopbackPart:
    """The device's part of a worker; plays `dataplane.served.DevicePart`."""

    cdef Loopback loopback
    cdef readonly object capsule

    def __cinit__(self, uint32_t vrings, uint32_t largest):
        cdef Device *d = &self.loopback.device
        d.device_size, d.worker_size, d.vring_size = sizeof(Device), sizeof(Worker), sizeof(Vring)
        d.vrings, d.largest, d.longest_chain = vrings, largest, MOST
        d.open = d.begin_turn = d.end_turn = nothing
        d.configure, d.start, d.serve, d.begin = configure, start, serve, begin
        d.complete, d.quit = complete, quit
        self.capsule = PyCapsule_New(d, DEVICE_CAPSULE, NULL)

    def counters(self, uint32_t ring):
        """Messages that went through a vring."""
        cdef Loopback *l = &self.loopback
        return {"messages": load_relaxed_u64(&l.delivered if ring == RECEIVE else &l.taken)}

    def report(self, code):
        """It reports nothing."""
        raise AssertionError(code)

    def close(self):
        """There is nothing to end."""
