# SPDX-License-Identifier: Apache-2.0
"""Chains that lack a translation of the guest's IOMMU: they have not begun, and hold nobody up.

A chain is parked only where it is recorded as in flight: who serves the vring next finds it there.
While data is logged for a migration it would be lost on the way, so then, or where nothing is
recorded, it is put back and its vring waits: whenever the vring stops, it was never fetched.
"""

from libc.errno cimport EFAULT
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from inflight.record cimport walk_again
from inflight.region cimport is_recorded
from virtio.flaw cimport FLAW_DENIED, found_flaw
from virtio.iotlb cimport IOVA_PAGE, Missing
from virtio.packed cimport retreat
from virtio.virtq cimport Chain, MISSED, Position
from virtio.virtqueue cimport skip, walk_skipped
from worker.mailbox cimport post_miss, wake_control
from worker.notify cimport break_ring
from worker.state cimport Worker
from worker.states cimport PLACE, RUNNING, WAIT, WAITING
from worker.vring cimport Parked, Vring, change


cdef inline bint is_awaiting(const Vring *r) noexcept nogil:
    """Whether a vring waits for what its next chain lacks; else for its own place, or for nothing.
    """
    return r.state == WAITING and r.is_placed


cdef inline int wait_for_more(Worker *w, Vring *r, Missing *missing) noexcept nogil:
    """Have what the last walk lacked asked for: 0, or -EFAULT where just that has been denied.

    What is denied to a chain makes it fail; then it needs no more than where its answer goes.
    """
    cdef const Missing *found = &w.iotlb.missing
    if missing.is_denied and missing.iova == found.iova and missing.access == found.access:
        return found_flaw(&r.vq.flaw, FLAW_DENIED, found.iova, found.access, 0, EFAULT)
    missing.is_last = missing.is_last or missing.is_denied
    missing.iova, missing.access = found.iova, found.access
    missing.is_asked = missing.is_known = missing.is_denied = False
    w.iotlb.has_unasked = True
    return 0


cdef inline void step_back(Vring *r, uint32_t descriptors) noexcept nogil:
    """Make the chain that was fetched last, of so many descriptors in a packed ring, the next."""
    if r.vq.packed:
        retreat(&r.vq.avail, descriptors, r.vq.size)
    else:
        r.vq.avail.index -= 1


cdef inline void park_recorded(
    Worker *w, Vring *r, uint32_t entry, uint32_t descriptors
) noexcept nogil:
    """Keep a chain that is recorded at `entry` until what it lacks has come."""
    cdef Parked *p = &r.parked[r.parked_count]
    memset(p, 0, sizeof(Parked))
    p.chain.entry, p.chain.descriptors = <uint16_t>entry, <uint16_t>descriptors
    r.parked_count += 1
    r.wanted -= 1               # it will begin
    wait_for_more(w, r, &p.missing)
    if is_denied_here(w, r):
        p.missing = r.awaited
        r.has_earlier = True
    memset(&r.awaited, 0, sizeof(Missing))


cdef inline int park(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Keep a chain that was just fetched and recorded until what it lacks has come: 1."""
    park_recorded(w, r, chain.entry if r.vq.packed else chain.id, chain.descriptors)
    return 1


cdef inline bint is_denied_here(const Worker *w, const Vring *r) noexcept nogil:
    """Whether the last walk lacked just what was denied to the next chain of a vring."""
    cdef const Missing *found = &w.iotlb.missing
    return (
        r.awaited.is_denied and r.awaited.iova == found.iova
        and r.awaited.access == found.access
    )


cdef inline int missed(Worker *w, Vring *r, Chain *chain) noexcept nogil:
    """Deal with a chain whose fetching ended with MISSED: 1 to park it, 0 if its vring waits.

    -errno breaks the vring.
    """
    step_back(r, chain.descriptors + 1)
    if is_recorded(&r.inflight) and r.parked_count < r.vq.size and (
        not w.log.of_data or is_denied_here(w, r)
    ):
        return skip(&r.vq, chain)
    memset(&r.awaited, 0, sizeof(Missing))
    change(r, WAIT)
    return wait_for_more(w, r, &r.awaited)


cdef inline bint knows_answer(const Worker *w, const Chain *chain) noexcept nogil:
    """Whether it is known where the answer of a chain goes that was walked to fail."""
    return chain.segments == 0 or w.segments[chain.segments - 1].base != NULL


cdef inline int fail(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Answer a chain that was denied what it needs: 1, or -errno where it cannot be answered."""
    if w.device.fail == NULL:
        return found_flaw(
            &r.vq.flaw, FLAW_DENIED, w.iotlb.missing.iova, w.iotlb.missing.access, 0, EFAULT
        )
    return w.device.fail(w, r, chain)


cdef inline int begin_parked(Worker *w, Vring *r, Parked *p) noexcept nogil:
    """Walk a parked chain again, to begin or to fail: 1 when that is done, 0, or -errno."""
    cdef Chain chain
    cdef int rc
    cdef bint fails = p.missing.is_denied or p.missing.is_last
    w.iotlb.only_last_bytes = fails
    rc = walk_again(
        &r.inflight, &r.vq, w.addresses, &p.chain, w.segments, w.segment_room, &chain
    )
    w.iotlb.only_last_bytes = False
    if rc == MISSED or (rc == 0 and fails and not knows_answer(w, &chain)):
        return wait_for_more(w, r, &p.missing)
    if rc < 0:
        return rc
    r.wanted += 1
    rc = fail(w, r, &chain) if fails else w.device.begin(w, r, &chain)
    return min(rc, 1)


cdef inline void serve_parked(Worker *w, Vring *r) noexcept nogil:
    """Go on with each parked chain of which more is known now, in the order in which they came."""
    cdef uint32_t i, kept = 0
    cdef Parked *p
    cdef int rc = 1
    for i in range(r.parked_count):
        p = &r.parked[i]
        if rc >= 0 and (p.missing.is_known or p.missing.is_denied):
            rc = begin_parked(w, r, p)
            if rc:
                continue
        r.parked[kept] = p[0]
        kept += 1
    r.parked_count = kept
    if rc < 0:
        break_ring(w, r, rc)


cdef inline int walk_next(Worker *w, Vring *r, Chain *chain) noexcept nogil:
    """Fetch the next chain, of which only the last bytes are wanted: 1, or -errno."""
    cdef Position head = r.vq.avail
    cdef int rc = skip(&r.vq, chain)
    if rc > 0:
        w.iotlb.only_last_bytes = True
        rc = walk_skipped(&r.vq, w.addresses, head, w.segments, w.segment_room, chain) or 1
        w.iotlb.only_last_bytes = False
    return rc


cdef inline int fail_next(Worker *w, Vring *r) noexcept nogil:
    """Fetch the next chain to fail it, or have its vring wait on: not negative, or -errno."""
    cdef Chain chain
    cdef Position head = r.vq.avail
    cdef int rc = walk_next(w, r, &chain)
    if rc == MISSED or (rc > 0 and not knows_answer(w, &chain)):
        r.vq.avail = head
        change(r, WAIT)
        return wait_for_more(w, r, &r.awaited)
    return fail(w, r, &chain) if rc > 0 else rc


cdef inline void serve_awaited(Worker *w, Vring *r) noexcept nogil:
    """Fail the chain that a vring waited for, if it was denied what it needs; others are fetched.

    One that can be recorded is fetched, too, to be parked: it lacks just that.
    """
    cdef int rc = 0
    if r.awaited.is_denied and is_recorded(&r.inflight):
        return
    if r.awaited.is_denied or r.awaited.is_last:
        rc = fail_next(w, r)
    if rc < 0:
        break_ring(w, r, rc)
    elif r.state == RUNNING:
        memset(&r.awaited, 0, sizeof(Missing))


# ---- what is asked for, and what has come ----

cdef inline bint ask(Worker *w, Missing *missing) noexcept nogil:
    """Have a translation asked for, unless that was done: whether it was done now."""
    if missing.is_asked or missing.is_known or missing.is_denied:
        return False
    missing.is_asked = post_miss(&w.mailbox, missing.iova, missing.access)
    if not missing.is_asked:
        w.iotlb.has_unasked = True      # there is no room now: the control thread wakes us
    return missing.is_asked


cdef inline void ask_for_missing(Worker *w) noexcept nogil:
    """Have all asked for that chains and vrings have lacked since."""
    cdef uint32_t i, k
    cdef Vring *r
    cdef bint has_asked = False
    w.iotlb.has_unasked = False
    for i in range(w.started_count):
        r = w.started[i]
        if is_awaiting(r):
            has_asked |= ask(w, &r.awaited)
        for k in range(r.parked_count):
            has_asked |= ask(w, &r.parked[k].missing)
    if has_asked:
        wake_control(&w.mailbox)


cdef inline bint meets(
    const Missing *missing, uint64_t first, uint64_t last, uint32_t access
) noexcept nogil:
    """Whether what is missing is in the page, and for the access, that something has come for."""
    return (
        not missing.access & ~access and missing.iova <= last
        and missing.iova + (IOVA_PAGE - 1) >= first
    )


cdef inline bint note_if_met(
    Missing *missing, uint64_t first, uint64_t last, uint32_t access, bint is_denied
) noexcept nogil:
    """Note that a translation has come, or is denied, if that is what was missing: whether so."""
    if not meets(missing, first, last, access):
        return False
    if is_denied:
        missing.is_denied = True
    else:
        missing.is_known = True
    return True


cdef inline void note_come(
    Worker *w, uint64_t first, uint64_t last, uint32_t access, bint is_denied
) noexcept nogil:
    """Have all that waited for a translation of these addresses go on, or fail."""
    cdef uint32_t i, k
    cdef Vring *r
    cdef bint is_met
    for i in range(w.started_count):
        r = w.started[i]
        is_met = is_awaiting(r) and note_if_met(&r.awaited, first, last, access, is_denied)
        if is_met:
            change(r, PLACE)
        elif not is_denied and meets(&r.awaited, first, last, access):
            r.awaited.is_denied = False
        for k in range(r.parked_count):
            is_met |= note_if_met(&r.parked[k].missing, first, last, access, is_denied)
        if is_met:
            r.has_earlier = r.wants_look = True
