# SPDX-License-Identifier: Apache-2.0
"""What the control thread asks of a worker, carried out between two sleeps."""

from libc.errno cimport EBUSY, EFAULT
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from sys.eventfds cimport bind_signal, make_signal
from virtio.dirtylog cimport DirtyLog, RingLog
from virtio.flaw cimport FLAW_NONE
from virtio.guestmem cimport MemoryView
from virtio.iotlb cimport Iotlb
from virtio.virtqueue cimport begin, start, vring_base
from worker.mailbox cimport (
    CMD_CONFIGURE, CMD_DENY_IOTLB, CMD_ENABLE, CMD_INVALIDATE_IOTLB, CMD_LOSE_PATIENCE, CMD_MOVE,
    CMD_PAUSE, CMD_PREPARE, CMD_QUIT, CMD_REGISTER, CMD_RESUME, CMD_RETRY, CMD_SET_CALL,
    CMD_SET_ERROR, CMD_SET_IOTLB, CMD_SET_KICK, CMD_SET_LOG, CMD_SET_MEMORY, CMD_START, CMD_STOP,
    CMD_UPDATE_IOTLB, Command, Miss, stage_answer, take_command,
)
from worker.notify cimport arm_kick, call_driver, leave_call, leave_kick, lose_ring
from worker.parking cimport lose_patience
from worker.registration cimport leave_registered, register_memory
from worker.serving cimport do_again
from worker.state cimport MAX_RINGS, Worker
from worker.states cimport (
    PLACE, RUNNING, SETTLE, START, START_BROKEN, STOP, STOPPING, WAIT,
)
from worker.translating cimport (
    Invalidation, LATER, Translation, choose_addresses, deny_iotlb, invalidate_iotlb, set_iotlb,
    settle_iotlb, update_iotlb,
)
from worker.vring cimport Vring, change, is_started

cdef extern from "<errno.h>" nogil:
    enum:
        ECANCELED


cdef enum:
    STILL_WAITING = 2           # a result that is neither 0 nor LATER


cdef struct Placement:
    # Where a ring lies, as mapped here; NULL where it is not mapped.
    void *desc
    void *driver
    void *device
    RingLog log


cdef struct VringStart:
    Placement place
    uint32_t index              # the device's number of it
    uint32_t size
    uint32_t base               # as SET_VRING_BASE has it
    void *inflight              # the ring's part of the in-flight region, or NULL
    uint32_t entries            # of it
    bint packed
    bint event_idx
    bint indirect
    bint is_lent                # ... which outlives the vring
    bint taken_over             # `base` is from who served it before, and is known to be right
    bint broken                 # ... who had stopped fetching from it


cdef struct MemoryChange:
    MemoryView *view            # NULL takes all memory away
    Placement places[MAX_RINGS]     # by the worker's own numbers


cdef inline void place(Vring *r, const Placement *where) noexcept nogil:
    """Point a ring at where it is mapped now.

    It is looked at and its driver asked for kicks anew: neither may hold at the new place.
    """
    r.is_placed = r.wants_look = True
    r.kick.wanted = False
    if change(r, PLACE):
        r.vq.flaw.kind = FLAW_NONE
    r.vq.desc = where.desc
    r.vq.driver = where.driver
    r.vq.device = where.device
    r.log = where.log
    if is_started(r) and r.unrecovered:
        start(&r.vq, r.base)    # it has not been read where it begins, there may be no place yet


cdef inline int place_anew(Worker *w, Vring *r, const VringStart *how) noexcept nogil:
    """Describe a stopped ring as it is to start: 0, or -errno."""
    r.index, r.vq.size = how.index, how.size
    r.vq.longest_chain = max(how.size, w.longest_chain)
    r.vq.packed = how.packed
    r.vq.event_idx = how.event_idx
    r.vq.indirect = how.indirect
    r.vq.flaw.kind = FLAW_NONE
    r.inflight.region, r.inflight.entries = how.inflight, how.entries
    r.inflight.is_lent = how.is_lent
    place(r, &how.place)
    if how.place.desc == NULL:
        return begin(&r.vq, how.base)
    return start(&r.vq, how.base)


cdef inline int start_ring(Worker *w, Vring *r, const VringStart *how) noexcept nogil:
    """Make a stopped ring live: 0, or -errno.  It looks at once: kicks may have come before."""
    cdef int rc
    if is_started(r):
        return -EBUSY
    if w.view == NULL:
        return -EFAULT
    rc = place_anew(w, r, how)
    if rc < 0:
        return rc
    r.in_flight = r.used_count = r.parked_count = 0
    r.has_lost_patience = False
    memset(&r.awaited, 0, sizeof(r.awaited))
    w.device.start(w, r)
    change(r, START_BROKEN if how.broken else START)
    r.kick.wanted = True
    w.started[w.started_count] = r
    w.started_count += 1
    r.base, r.taken_over, r.unrecovered, r.has_earlier = how.base, how.taken_over, True, True
    if how.place.desc == NULL:
        r.is_placed = False     # nobody has translated its addresses yet
        change(r, WAIT)
    arm_kick(w, r)
    return 0


cdef inline int set_memory(Worker *w, uint64_t ticket, const MemoryChange *memory) noexcept nogil:
    """Use another memory map from the next request on; rings outside it wait for the next.

    Answered (LATER) when no request uses the old map; until then the old place of a
    lost ring's used ring stays mapped too, so that its requests can end.
    """
    cdef uint32_t i
    cdef Vring *r
    cdef MemoryView *old = w.view
    for i in range(w.count):
        r = &w.vrings[i]
        if memory.places[i].desc == NULL and r.is_placed:
            r.is_placed = False
            lose_ring(w, r)
        elif memory.places[i].desc != NULL and is_started(r):
            place(r, &memory.places[i])
    w.view = memory.view
    choose_addresses(w)
    leave_registered(w)
    if old == NULL:
        return 0
    old.retired = ticket
    old.older = w.old_views
    w.old_views = old
    return LATER


cdef inline int register_view(Worker *w, uint64_t ticket) noexcept nogil:
    """Register the present map once no request is on an older one: LATER, or -EBUSY."""
    if w.register_ticket:
        return -EBUSY
    if w.registered == 1:
        return 0
    w.register_ticket = ticket
    w.register_due = True
    return LATER


cdef inline int set_kick(Worker *w, Vring *r, uint64_t ticket, int fd) noexcept nogil:
    """Listen to another kick eventfd: 0, or LATER while the old one is still being left."""
    if not r.kick.is_watched:
        r.kick.fd = fd
        arm_kick(w, r)
        return 0
    r.kick.next_fd = fd
    r.kick.ticket = ticket
    leave_kick(w, r)
    return LATER


cdef inline int set_call(Worker *w, Vring *r, int fd) noexcept nogil:
    """Notify another call eventfd from now on, once at once: the old one may be unheard.

    0, or -errno; then there is none.
    """
    cdef int rc
    leave_call(w, r)
    rc = bind_signal(&r.call.signal, fd)
    if is_started(r):
        call_driver(w, r)
    return rc


cdef inline int stop_ring(Worker *w, Vring *r, uint64_t ticket) noexcept nogil:
    """Fetch no more from a ring; `settle` answers once it is idle: LATER, or -errno.

    What a dead back end had fetched counts as fetched, though the ring may be paused.
    """
    if r.enabled and r.state == RUNNING:
        do_again(w, r)
    if not change(r, STOP):
        return -EBUSY
    r.stop_ticket = ticket
    if w.device.stop != NULL:
        w.device.stop(w, r)
    return LATER


cdef inline int prepare(Worker *w) noexcept nogil:
    """Have all signals ready: 0, or -errno."""
    cdef uint32_t i
    cdef int rc = make_signal(&w.error)
    for i in range(w.count):
        if rc == 0:
            rc = make_signal(&w.vrings[i].call.signal)
    return rc


cdef inline int pause(Worker *w, uint64_t ticket) noexcept nogil:
    """Fetch no more; `settle` answers once nothing is in flight: LATER, or -errno."""
    if w.pause_ticket:
        return -EBUSY
    w.paused = True
    w.pause_ticket = ticket
    return LATER


cdef inline void resume(Worker *w) noexcept nogil:
    """Fetch again, from every ring: kicks have gone unheeded.  A pause under way is off."""
    cdef uint32_t i
    w.paused = False
    if w.pause_ticket:
        stage_answer(&w.mailbox, w.pause_ticket, 0, -ECANCELED)
        w.pause_ticket = 0
    for i in range(w.count):
        w.vrings[i].wants_look = True


cdef inline int64_t apply_to_ring(Worker *w, const Command *c) noexcept nogil:
    """Carry out a command for one ring: its result, -errno, or LATER."""
    cdef Vring *r = &w.vrings[c.vring]
    if c.kind == CMD_START:
        return start_ring(w, r, <const VringStart *>c.data)
    if c.kind == CMD_MOVE:
        place(r, <const Placement *>c.data)
    elif c.kind == CMD_STOP:
        return stop_ring(w, r, c.ticket)
    elif c.kind == CMD_ENABLE:
        r.enabled = c.value != 0
        r.wants_look = True
    elif c.kind == CMD_SET_KICK:
        return set_kick(w, r, c.ticket, <int>c.value)
    elif c.kind == CMD_SET_CALL:
        return set_call(w, r, <int>c.value)
    elif c.kind == CMD_SET_ERROR:
        r.error = <int>c.value
    return 0


cdef inline int64_t apply_to_iotlb(Worker *w, const Command *c) noexcept nogil:
    """Carry out a command for what is known of IOVAs: its result, -errno, or LATER."""
    if c.kind == CMD_SET_IOTLB:
        set_iotlb(w, (<Iotlb **>c.data)[0])
    elif c.kind == CMD_UPDATE_IOTLB:
        return update_iotlb(w, <const Translation *>c.data)
    elif c.kind == CMD_INVALIDATE_IOTLB:
        return invalidate_iotlb(w, c.ticket, <const Invalidation *>c.data)
    elif c.kind == CMD_LOSE_PATIENCE:
        return STILL_WAITING if lose_patience(w) else 0
    elif c.kind == CMD_DENY_IOTLB:
        deny_iotlb(w, <const Miss *>c.data)
    return 0


cdef inline int64_t apply(Worker *w, const Command *c) noexcept nogil:
    """Carry out one command: its result, -errno, or LATER."""
    if c.kind == CMD_SET_MEMORY:
        return set_memory(w, c.ticket, <const MemoryChange *>c.data)
    if c.kind == CMD_REGISTER:
        return register_view(w, c.ticket)
    if CMD_SET_IOTLB <= c.kind <= CMD_DENY_IOTLB:
        return apply_to_iotlb(w, c)
    if c.kind == CMD_SET_LOG:
        w.log = (<const DirtyLog *>c.data)[0]
    elif c.kind == CMD_CONFIGURE:
        w.device.configure(w, c.data)
    elif c.kind == CMD_PREPARE:
        return prepare(w)
    elif c.kind == CMD_PAUSE:
        return pause(w, c.ticket)
    elif c.kind == CMD_RESUME:
        resume(w)
    elif c.kind == CMD_RETRY:
        if w.device.retry != NULL:
            w.device.retry(w, <uint32_t>c.value)
    elif c.kind == CMD_QUIT:
        w.quit = True
    else:
        return apply_to_ring(w, c)
    return 0


cdef inline void take_commands(Worker *w) noexcept nogil:
    """Carry out what the control thread has posted."""
    cdef Command c
    cdef int64_t result
    while take_command(&w.mailbox, &c):
        result = apply(w, &c)
        if result != LATER:
            stage_answer(&w.mailbox, c.ticket, c.vring, result)


cdef inline void drop_started(Worker *w, const Vring *r) noexcept nogil:
    """Take a ring out of those that are served; the last one gets its place."""
    cdef uint32_t i = 0
    while w.started[i] != r:
        i += 1
    w.started_count -= 1
    w.started[i] = w.started[w.started_count]


cdef inline void settle_stop(Worker *w, Vring *r) noexcept nogil:
    """End a stopping ring once its requests and its kick poll are done."""
    if r.in_flight:
        return
    if r.kick.is_watched:
        leave_kick(w, r)
        return
    leave_call(w, r)
    stage_answer(&w.mailbox, r.stop_ticket, r.number, vring_base(&r.vq))
    r.kick.fd = -1
    change(r, SETTLE)
    drop_started(w, r)


cdef inline void settle_views(Worker *w) noexcept nogil:
    """Let go of the memory maps that no request uses any more, the oldest first.

    A ring may have moved on to a newer map while its requests hold an older one: what they
    give back is written into the newer, so that must stay as long.
    """
    cdef MemoryView **oldest
    while w.old_views != NULL:
        oldest = &w.old_views
        while oldest[0].older != NULL:
            oldest = &oldest[0].older
        if oldest[0].pins:
            return
        stage_answer(&w.mailbox, oldest[0].retired, 0, 0)
        oldest[0] = NULL


cdef inline void settle(Worker *w) noexcept nogil:
    """Answer the commands that waited for requests to end."""
    cdef uint32_t i
    for i in range(w.started_count, 0, -1):     # one that has stopped leaves its place
        if w.started[i - 1].state == STOPPING:
            settle_stop(w, w.started[i - 1])
    if w.pause_ticket and w.in_flight == 0:
        stage_answer(&w.mailbox, w.pause_ticket, 0, 0)
        w.pause_ticket = 0
    settle_views(w)
    if w.iotlb != NULL:
        settle_iotlb(w)
    register_memory(w)
