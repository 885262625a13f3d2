# SPDX-License-Identifier: Apache-2.0
"""What a ring does otherwise while its writes are logged, for a live migration."""

from libc.errno cimport ENOSPC

from virtio.dirtylog cimport mark_areas
from virtio.flaw cimport FLAW_LOG, FLAW_MEMORY, FLAW_NONE, found_flaw
from worker.notify cimport break_ring
from worker.state cimport Worker
from worker.states cimport BROKEN
from worker.vring cimport Vring


cdef inline void outrun_log(Worker *w, Vring *r) noexcept nogil:
    """Stop a ring that writes where the log has no bit: what it writes would not be migrated."""
    if r.state != BROKEN and (r.vq.flaw.kind == FLAW_NONE or r.vq.flaw.kind == FLAW_MEMORY):
        break_ring(w, r, found_flaw(&r.vq.flaw, FLAW_LOG, 0, 0, 0, ENOSPC))


cdef inline bint logged_areas(Worker *w, Vring *r) noexcept nogil:
    """Log our writes to a ring's own areas: whether the log, if any, has bits for them."""
    if w.log.bits == NULL or mark_areas(&w.log, &r.log):
        return True
    outrun_log(w, r)
    return False
