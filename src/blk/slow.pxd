# SPDX-License-Identifier: Apache-2.0
"""Requests that took longer than they may: kept for the control thread, which logs them.

A few are kept at a time.  Where a disk is so slow that there are more, they are only counted.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from blk.state cimport SLOW_KEPT, SlowRequest, SlowRequests, blk_of
from figures.measuring cimport Times
from sys.atomics cimport load_acquire_u32, store_relaxed_u64, store_release_u32
from worker.mailbox cimport has_report_room, stage_answer
from worker.state cimport Worker


cdef enum:
    REPORT_SLOW = 66            # a worker's report: there are slow requests to be taken


cdef inline bint is_slow(const Worker *w, const Times *times) noexcept nogil:
    """Whether a request took longer than the disk's requests may."""
    cdef uint64_t longest = blk_of(w).limits.slow
    return longest and times.ring + times.throttle + times.disk >= longest


cdef inline void keep_slow(
    Worker *w, uint32_t ring, uint32_t type, uint64_t offset, uint64_t bytes, const Times *times,
    int32_t result, bint bounced, bint durable,
) noexcept nogil:
    """Keep what is to be said of a slow request, and have the control thread come for it."""
    cdef SlowRequests *s = &blk_of(w).slow
    cdef SlowRequest *q = &s.kept[s.written % SLOW_KEPT]
    if s.written - load_acquire_u32(&s.taken) >= SLOW_KEPT:
        store_relaxed_u64(&s.missed, s.missed + 1)
    else:
        q.ring, q.type, q.offset, q.bytes = ring, type, offset, bytes
        q.times = times[0]
        q.result, q.bounced, q.durable = result, bounced, durable
        store_release_u32(&s.written, s.written + 1)
    if not load_acquire_u32(&s.is_reported) and has_report_room(&w.mailbox):
        store_release_u32(&s.is_reported, 1)
        stage_answer(&w.mailbox, 0, 0, REPORT_SLOW)
