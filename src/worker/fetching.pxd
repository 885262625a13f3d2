# SPDX-License-Identifier: Apache-2.0
"""Fetching from a vring: what a device calls when it has a use for chains.

`begin` is a constant where a device calls this, so the compiler makes loops of it that are the
device's own.
"""

from inflight.packed cimport record_packed, unrecord_packed
from inflight.region cimport is_recorded
from inflight.split cimport record_split, unrecord_split
from virtio.packed cimport take_packed
from virtio.split cimport take_split
from virtio.virtq cimport Chain
from worker.state cimport Begin, FETCH_BUDGET, Worker
from worker.vring cimport Vring


# Two loops that differ in one call: neither has a branch on the layout.

cdef inline int fetch_split(Worker *w, Vring *r, Begin begin) noexcept nogil:
    """Begin what is available and wanted, up to this vring's turn: as `fetch`."""
    cdef Chain chain
    cdef int budget = FETCH_BUDGET, rc = 1
    while rc > 0 and budget > 0 and r.wanted:
        rc = take_split(&r.vq, w.view.memory, w.segments, w.segment_room, &chain)
        if rc > 0:
            if is_recorded(&r.inflight):
                record_split(&r.inflight, &chain)
            rc = begin(w, r, &chain)
            if rc < 0 and is_recorded(&r.inflight):
                unrecord_split(&r.inflight, &chain)
            budget -= rc
    return rc


cdef inline int fetch_packed(Worker *w, Vring *r, Begin begin) noexcept nogil:
    """Begin what is available and wanted, up to this vring's turn: as `fetch`."""
    cdef Chain chain
    cdef int budget = FETCH_BUDGET, rc = 1
    while rc > 0 and budget > 0 and r.wanted:
        rc = take_packed(&r.vq, w.view.memory, w.segments, w.segment_room, &chain)
        if rc > 0 and is_recorded(&r.inflight):
            rc = record_packed(&r.inflight, &r.vq, &chain) or rc
        if rc > 0:
            rc = begin(w, r, &chain)
            if rc < 0 and is_recorded(&r.inflight):
                unrecord_packed(&r.inflight, &chain)
            budget -= rc
    return rc


cdef inline int fetch(Worker *w, Vring *r, Begin begin) noexcept nogil:
    """Begin what is available and wanted, up to this vring's turn.

    Returns 1 if there may be more, 0, or -errno, which breaks the vring.
    """
    return fetch_packed(w, r, begin) if r.vq.packed else fetch_split(w, r, begin)
