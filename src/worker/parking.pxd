# SPDX-License-Identifier: Apache-2.0
"""Chains that lack a translation of the guest's IOMMU: they have not begun.

The next chain of a vring is put back, and the vring waits: however it stops, that chain was never
fetched.  All pages that it lacks are asked for at once, and those of some chains behind it.

A front end that does not answer would hold up the whole vring.  When patience is lost the chain is
parked instead, if it can be recorded as in flight: who serves the vring next finds it there.  While
data is logged for a migration it would be lost on the way, and is not parked.
"""

from libc.errno cimport EFAULT
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from inflight.record cimport walk_again
from inflight.region cimport is_recorded
from virtio.flaw cimport FLAW_DENIED, FLAW_NONE, found_flaw
from virtio.iotlb cimport (
    IOVA_PAGE, Missing, WALK_FOR_LAST_BYTES, WALK_FOR_MISSING, WALK_WHOLE,
)
from virtio.packed cimport retreat
from virtio.virtq cimport Chain, MISSED, Position
from virtio.virtqueue cimport has_more, skip, walk_skipped
from worker.mailbox cimport post_miss, wake_control
from worker.notify cimport break_ring
from worker.state cimport Worker
from worker.states cimport PLACE, RUNNING, WAIT, WAITING
from worker.vring cimport Parked, Vring, change


cdef enum:
    CHAINS_ASKED_FOR = 16       # of a vring that waits, whose translations are asked for at once


cdef inline bint is_awaiting(const Vring *r) noexcept nogil:
    """Whether a vring waits for what its next chain lacks; else for its own place, or for nothing.
    """
    return r.state == WAITING and r.is_placed


cdef inline void step_back(Vring *r, uint32_t descriptors) noexcept nogil:
    """Make the chain that was fetched last, of so many descriptors in a packed ring, the next."""
    if r.vq.packed:
        retreat(&r.vq.avail, descriptors, r.vq.size)
    else:
        r.vq.avail.index -= 1


# ---- asking ----

cdef inline int ask_for_found(Worker *w) noexcept nogil:
    """Have all asked for that the last walk found missing: whether there was room for all."""
    cdef uint32_t i
    for i in range(w.iotlb.found_count):
        if not post_miss(&w.mailbox, w.iotlb.found[i].iova, w.iotlb.found[i].access):
            return False
    return True


cdef inline void ask_for_chains(Worker *w, Vring *r) noexcept nogil:
    """Have all asked for that the next chains lack; of the first, its vring awaits the last page.

    Answers come in the order of questions, so the others have come by then.
    """
    cdef Position head = r.vq.avail
    cdef Chain chain
    cdef uint32_t n = 0
    cdef Position at
    cdef bint has_room = True
    w.iotlb.walk = WALK_FOR_MISSING
    while n < CHAINS_ASKED_FOR and has_room and has_more(&r.vq):
        w.iotlb.found_count = 0
        at = r.vq.avail
        if skip(&r.vq, &chain) < 0:
            break
        walk_skipped(&r.vq, w.addresses, at, w.segments, w.segment_room, &chain)
        if n == 0 and w.iotlb.found_count:
            r.awaited = w.iotlb.found[w.iotlb.found_count - 1]
        has_room = ask_for_found(w)
        if n == 0:
            r.awaited.is_asked = has_room and w.iotlb.found_count
        n += 1
    w.iotlb.walk = WALK_WHOLE
    r.vq.avail = head
    r.vq.flaw.kind = FLAW_NONE  # what is wrong with a chain is found again when it is fetched
    wake_control(&w.mailbox)


cdef inline int wait_for_more(Worker *w, Vring *r, Missing *missing) noexcept nogil:
    """Wait for what the last walk lacked: 0, or -EFAULT where just that has been denied.

    What is denied to a chain makes it fail; then it needs no more than where its answer goes.
    """
    cdef const Missing *lacked = &w.iotlb.missing
    if missing.is_last and missing.is_denied and (
        missing.iova == lacked.iova and missing.access == lacked.access
    ):
        return found_flaw(&r.vq.flaw, FLAW_DENIED, lacked.iova, lacked.access, 0, EFAULT)
    missing.is_last = missing.is_last or missing.is_denied or lacked.is_last
    missing.iova, missing.access = lacked.iova, lacked.access
    missing.is_asked = missing.is_denied = False
    missing.is_known = lacked.is_last   # what is too much is to fail at once
    w.iotlb.has_unasked = True
    return 0


# ---- the next chain of a vring ----

cdef inline bint is_doomed(const Missing *missing) noexcept nogil:
    """Whether what waits is to fail."""
    return missing.is_denied or missing.is_last


cdef inline bint may_park(const Worker *w, const Vring *r) noexcept nogil:
    """Whether the next chain of a vring, which lacks something, is to be parked."""
    if not is_recorded(&r.inflight) or r.parked_count == r.vq.size:
        return False
    return is_doomed(&r.awaited) or (
        (r.has_lost_patience or r.parked_count) and not w.log.of_data
    )


cdef inline int missed(Worker *w, Vring *r, Chain *chain) noexcept nogil:
    """Deal with a chain whose fetching ended with MISSED: 1 to park it, 0 if its vring waits.

    -errno breaks the vring.
    """
    step_back(r, chain.descriptors + 1)
    if may_park(w, r):
        r.has_lost_patience = False
        return skip(&r.vq, chain)
    if w.iotlb.missing.is_last:
        r.awaited, r.has_earlier = w.iotlb.missing, True    # it lies in too many pieces
        return 0
    memset(&r.awaited, 0, sizeof(Missing))
    change(r, WAIT)
    wait_for_more(w, r, &r.awaited)
    ask_for_chains(w, r)
    return 0


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


cdef inline int fail_next(Worker *w, Vring *r) noexcept nogil:
    """Fetch the next chain to fail it, or have its vring wait on: not negative, or -errno."""
    cdef Chain chain
    cdef Position head = r.vq.avail
    cdef int rc = skip(&r.vq, &chain)
    if rc < 0:
        return rc
    w.iotlb.walk = WALK_FOR_LAST_BYTES
    rc = walk_skipped(&r.vq, w.addresses, head, w.segments, w.segment_room, &chain)
    w.iotlb.walk = WALK_WHOLE
    if rc == MISSED or (rc == 0 and not knows_answer(w, &chain)):
        r.vq.avail = head
        change(r, WAIT)
        return wait_for_more(w, r, &r.awaited)
    memset(&r.awaited, 0, sizeof(Missing))
    return fail(w, r, &chain) if rc == 0 else rc


cdef inline void serve_awaited(Worker *w, Vring *r) noexcept nogil:
    """Have the chain that a vring waited for fetched, or failed where it was denied what it needs.

    One that is recorded is fetched all the same, to be parked with that: `missed`.
    """
    cdef int rc
    if not is_doomed(&r.awaited):
        memset(&r.awaited, 0, sizeof(Missing))
    elif not is_recorded(&r.inflight):
        rc = fail_next(w, r)
        if rc < 0:
            break_ring(w, r, rc)


cdef inline uint32_t lose_patience(Worker *w) noexcept nogil:
    """Have all vrings go on that have waited since the last time: how many still wait."""
    cdef uint32_t i, waiting = 0
    cdef Vring *r
    for i in range(w.started_count):
        r = w.started[i]
        if not is_awaiting(r) or r.awaited.is_last or not is_recorded(&r.inflight):
            continue
        if r.awaited.is_old and not w.log.of_data:
            r.has_lost_patience = r.wants_look = True
            change(r, PLACE)
        else:
            r.awaited.is_old = True
            waiting += 1
    return waiting


# ---- parked chains ----

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
    if is_doomed(&r.awaited):
        p.missing.is_last = p.missing.is_known = True
        memset(&r.awaited, 0, sizeof(Missing))
    r.has_earlier = r.has_earlier or p.missing.is_known


cdef inline int park(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Keep a chain that was just fetched and recorded until what it lacks has come: 1."""
    park_recorded(w, r, chain.entry if r.vq.packed else chain.id, chain.descriptors)
    return 1


cdef inline void park_again(Worker *w, Vring *r, const Chain *chain) noexcept nogil:
    """Keep a recorded chain that is to be walked anew, once its vring is served."""
    cdef Parked *p = &r.parked[r.parked_count]
    memset(p, 0, sizeof(Parked))
    p.chain.entry = <uint16_t>(chain.entry if r.vq.packed else chain.id)
    p.chain.descriptors = <uint16_t>chain.descriptors
    p.missing.is_known = True
    r.parked_count += 1
    r.wanted -= 1               # it will begin
    r.has_earlier = r.wants_look = True


cdef inline int begin_parked(Worker *w, Vring *r, Parked *p) noexcept nogil:
    """Walk a parked chain again, to begin or to fail: 1 when that is done, 0, or -errno.

    One that breaks its vring stays recorded: others were fetched behind it, which are counted.
    """
    cdef Chain chain
    cdef int rc
    cdef bint fails = is_doomed(&p.missing)
    w.iotlb.walk = WALK_FOR_LAST_BYTES if fails else WALK_WHOLE
    rc = walk_again(
        &r.inflight, &r.vq, w.addresses, &p.chain, w.segments, w.segment_room, &chain
    )
    w.iotlb.walk = WALK_WHOLE
    if rc == MISSED or (rc == 0 and fails and not knows_answer(w, &chain)):
        return wait_for_more(w, r, &p.missing)
    if rc < 0:
        return rc
    r.wanted += 1
    rc = fail(w, r, &chain) if fails else w.device.begin(w, r, &chain)
    return rc if rc < 0 else 1


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
        r.has_earlier = r.has_earlier or p.missing.is_known
        kept += 1
    r.parked_count = kept
    if rc < 0:
        break_ring(w, r, rc)


# ---- what is missing, and what has come ----

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


cdef inline bint note_if_met(
    Missing *missing, uint64_t first, uint64_t last, uint32_t access, bint is_denied
) noexcept nogil:
    """Note that a translation has come, or is denied, if that is what was missing: whether so."""
    if missing.access & ~access or missing.iova > last or (
        missing.iova + (IOVA_PAGE - 1) < first
    ):
        return False
    missing.is_denied, missing.is_known = is_denied, not is_denied
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
        elif not is_denied and note_if_met(&r.awaited, first, last, access, False):
            r.has_lost_patience = False     # it was neither failed nor parked yet
        for k in range(r.parked_count):
            is_met |= note_if_met(&r.parked[k].missing, first, last, access, is_denied)
        if is_met:
            r.has_earlier = r.wants_look = True
