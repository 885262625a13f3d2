# SPDX-License-Identifier: Apache-2.0
"""Fetching from a vring: what a device calls when it has a use for chains.

`begin` is a constant where a device calls this, so the compiler makes loops of it that are the
device's own.
"""

from inflight.packed cimport record_packed, unrecord_packed
from inflight.region cimport is_recorded
from inflight.split cimport record_split, unrecord_split
from sys.hints cimport unlikely
from virtio.packed cimport take_packed
from virtio.split cimport take_split
from virtio.virtq cimport Chain, MISSED, Position
from worker.parking cimport missed, park
from worker.state cimport Begin, FETCH_BUDGET, Worker
from worker.vring cimport Vring


ctypedef int (*Missed)(Worker *w, Vring *r, Chain *chain) noexcept nogil


cdef extern from *:
    Missed apart "blkd_apart"(Missed function) noexcept nogil           # see sys.hints


# Two loops that differ in one call: neither has a branch on the layout.

cdef inline int fetch_split(Worker *w, Vring *r, Begin begin) noexcept nogil:
    """Begin what is available and wanted, up to this vring's turn: as `fetch`."""
    cdef Chain chain
    cdef bint lacks
    cdef int budget = FETCH_BUDGET, rc = 1
    while rc > 0 and budget > 0 and r.wanted:
        rc = take_split(&r.vq, w.addresses, w.segments, w.segment_room, &chain)
        lacks = rc == MISSED
        if unlikely(lacks):
            rc = apart(missed)(w, r, &chain)
        if rc > 0:
            if is_recorded(&r.inflight):
                record_split(&r.inflight, &chain)
            rc = park(w, r, &chain) if unlikely(lacks) else begin(w, r, &chain)
            if rc < 0 and is_recorded(&r.inflight):
                unrecord_split(&r.inflight, &chain)
            budget -= rc
    return rc


cdef inline int fetch_packed(Worker *w, Vring *r, Begin begin) noexcept nogil:
    """Begin what is available and wanted, up to this vring's turn: as `fetch`."""
    cdef Chain chain
    cdef bint lacks
    cdef int budget = FETCH_BUDGET, rc = 1
    while rc > 0 and budget > 0 and r.wanted:
        rc = take_packed(&r.vq, w.addresses, w.segments, w.segment_room, &chain)
        lacks = rc == MISSED
        if unlikely(lacks):
            rc = apart(missed)(w, r, &chain)
        if rc > 0 and is_recorded(&r.inflight):
            rc = record_packed(&r.inflight, &r.vq, &chain) or rc
        if rc > 0:
            rc = park(w, r, &chain) if unlikely(lacks) else begin(w, r, &chain)
            if rc < 0 and is_recorded(&r.inflight):
                unrecord_packed(&r.inflight, &chain)
            budget -= rc
    return rc


cdef inline int fetch(Worker *w, Vring *r, Begin begin) noexcept nogil:
    """Begin what is available and wanted, up to this vring's turn.

    Returns 1 if there may be more, 0, or -errno, which breaks the vring.
    """
    return fetch_packed(w, r, begin) if r.vq.packed else fetch_split(w, r, begin)


# A device that has to see a chain before it knows its use fetches one by one.

cdef inline int take(Worker *w, Vring *r, Chain *chain) noexcept nogil:
    """Fetch the next chain, its buffers into the worker's segments: 1, 0 without one, or -errno.

    It is the device's from then on, to be given back or to be put back.  A device that offers
    ACCESS_PLATFORM needs `fetch`: here a chain whose translation is missing would break its vring.
    """
    cdef int rc
    if r.vq.packed:
        rc = take_packed(&r.vq, w.addresses, w.segments, w.segment_room, chain)
        if rc > 0 and is_recorded(&r.inflight):
            rc = record_packed(&r.inflight, &r.vq, chain) or rc
        return rc
    rc = take_split(&r.vq, w.addresses, w.segments, w.segment_room, chain)
    if rc > 0 and is_recorded(&r.inflight):
        record_split(&r.inflight, chain)
    return rc


cdef inline void put_back(Vring *r, const Chain *chain, Position before) noexcept nogil:
    """Have a chain available again that was fetched and not used, and none fetched after it.

    `before` is `vq.avail` as it was then.
    """
    if is_recorded(&r.inflight):
        if r.vq.packed:
            unrecord_packed(&r.inflight, chain)
        else:
            unrecord_split(&r.inflight, chain)
    r.vq.avail = before
