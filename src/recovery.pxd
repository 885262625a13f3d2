# SPDX-License-Identifier: Apache-2.0
"""Where a ring goes on that somebody served before, and what is to be carried out again.

Nothing is written to a ring or its in-flight region before it is served for the first time:
until then it may be another process's.
"""

from libc.stdint cimport uint32_t

from inflight cimport INFLIGHT_VERSION, Inflight, is_recorded
from inflight_packed cimport packed_region, recover_packed, renew_packed
from inflight_split cimport recover_split
from mailbox cimport REPORT_RECOVERED, stage_answer
from notify cimport break_ring, call_driver
from packed cimport FIRST_BASE, is_no_fresh_ring, is_untouched
from requests cimport Vring
from virtq cimport Virtq
from worker cimport Worker

cdef extern from "<errno.h>" nogil:
    enum:
        EBADMSG
        ESTALE


cdef inline int recover(
    Inflight *f, Virtq *vq, uint32_t base, bint taken_over
) noexcept nogil:
    """Find out what a ring, placed at `base`, has in flight: 0, or -errno if it cannot be served.

    -ESTALE: a packed ring that was served before, and nobody knows how far; who has it from
    another process knows.
    -EBADMSG: its in-flight region is damaged.
    """
    f.again_count = f.again_done = 0
    if is_recorded(f) and not vq.packed:
        recover_split(f, vq)
    elif is_recorded(f) and packed_region(f).version == INFLIGHT_VERSION and not (
        base == FIRST_BASE and is_untouched(vq)
    ):
        return -EBADMSG if recover_packed(f, vq) < 0 else 0
    elif vq.packed and base == FIRST_BASE and not taken_over and is_no_fresh_ring(vq):
        return -ESTALE          # served from here it would do what was done before
    elif is_recorded(f):
        renew_packed(f, vq)
    return 0


cdef inline void recover_ring(Worker *w, Vring *r) noexcept nogil:
    """Find out once, before anything is fetched, where a ring that has started goes on.

    Its driver is called: whoever served it before may have died owing a call, which its indices
    need not show, since they wrap.  A driver ignores one that it does not need.
    """
    cdef int rc = recover(&r.inflight, &r.vq, r.base, r.taken_over)
    r.unrecovered = False
    if rc == 0 and r.inflight.again_count:
        stage_answer(&w.mailbox, 0, r.number, REPORT_RECOVERED + r.inflight.again_count)
    if rc < 0:
        break_ring(w, r, rc)
    else:
        call_driver(w, r)
