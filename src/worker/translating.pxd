# SPDX-License-Identifier: Apache-2.0
"""What a worker knows of I/O virtual addresses, as the control thread has it changed."""

from libc.errno cimport EBUSY, EINVAL
from libc.stdint cimport uint32_t, uint64_t

from virtio.guestmem cimport Region
from virtio.iotlb cimport (
    Iotlb, MOST_REMOVED, NOWHERE, drop_all, forget, learn,
)
from worker.mailbox cimport Miss, stage_answer
from worker.parking cimport ask_for_missing, note_come
from worker.state cimport Worker
from worker.states cimport WAIT
from worker.vring cimport change

cdef enum:
    LATER = 1                   # a command's result when its answer is not due yet


cdef struct Translation:
    Region range                # of IOVAs, and where it is mapped in the present memory
    uint32_t access


cdef struct Invalidation:
    uint64_t first
    uint64_t last
    uint64_t vrings             # by the worker's numbers, a bit each: whose place it has


cdef inline void look_anew(Worker *w) noexcept nogil:
    """Have every vring look its addresses up: the nodes are not what they were."""
    cdef uint32_t i
    for i in range(w.count):
        w.vrings[i].vq.near = NOWHERE


cdef inline void choose_addresses(Worker *w) noexcept nogil:
    """Walk chains by the IOTLB if there is one, which then knows nothing; else by guest memory."""
    if w.iotlb != NULL:
        drop_all(w.iotlb)
        w.addresses = &w.iotlb.memory
    else:
        w.addresses = w.view.memory if w.view != NULL else NULL
    look_anew(w)


cdef inline void set_iotlb(Worker *w, Iotlb *iotlb) noexcept nogil:
    """Take addresses for IOVAs, or for the guest's own with NULL.  No vring is started."""
    if w.iotlb != NULL and w.iotlb.ticket:
        stage_answer(&w.mailbox, w.iotlb.ticket, 0, 0)
    w.iotlb = iotlb
    choose_addresses(w)


cdef inline int update_iotlb(Worker *w, const Translation *what) noexcept nogil:
    """Know a translation: 0, or -errno."""
    if w.iotlb == NULL or w.view == NULL:
        return -EINVAL
    learn(w.iotlb, w.view.memory, &what.range, what.access)
    look_anew(w)
    note_come(
        w, what.range.guest_address, what.range.guest_address + what.range.size - 1, what.access,
        False,
    )
    return 0


cdef inline void deny_iotlb(Worker *w, const Miss *what) noexcept nogil:
    """Fail what waits for a translation that there is not."""
    if w.iotlb != NULL:
        note_come(w, what.iova, what.iova, what.access, True)


cdef inline int invalidate_iotlb(
    Worker *w, uint64_t ticket, const Invalidation *what
) noexcept nogil:
    """Know some translations no more, nor where some vrings lie: LATER, or -errno.

    Answered when nothing that has begun touches what was there.  Where it is not known what does,
    all is waited for, and everything is forgotten, so that nothing new begins meanwhile.
    """
    cdef uint32_t i
    cdef Iotlb *t = w.iotlb
    if t == NULL:
        return 0
    if t.ticket:
        return -EBUSY
    t.removed_count = 0
    forget(t, what.first, what.last, True)
    if t.has_dropped or (t.removed_count and w.device.uses == NULL):
        t.removed_count = MOST_REMOVED + 1
    if t.removed_count > MOST_REMOVED:
        drop_all(t)
    look_anew(w)
    for i in range(w.count):
        if what.vrings >> i & 1:
            w.vrings[i].is_placed = False
            change(&w.vrings[i], WAIT)
    t.ticket, t.vrings = ticket, what.vrings
    if w.device.invalidate != NULL:
        w.device.invalidate(w)
    return LATER


cdef inline bint is_touched(const Iotlb *t, Worker *w) noexcept nogil:
    """Whether something that has begun may touch what an invalidation has taken away."""
    cdef uint32_t i
    for i in range(w.count):
        if t.vrings >> i & 1 and (w.vrings[i].in_flight or w.vrings[i].used_count):
            return True         # its used ring lies there
    if t.removed_count == 0 or w.in_flight == 0:
        return False
    if t.removed_count > MOST_REMOVED:
        return True
    return w.device.uses(w, t.removed, t.removed_count)


cdef inline void settle_iotlb(Worker *w) noexcept nogil:
    """Ask for what is missing, and answer an invalidation once it is through."""
    cdef Iotlb *t = w.iotlb
    if w.in_flight == 0:
        t.has_dropped = False
    if t.has_unasked:
        ask_for_missing(w)
    if t.ticket and not is_touched(t, w):
        stage_answer(&w.mailbox, t.ticket, 0, 0)
        t.ticket = 0
