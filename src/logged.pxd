# SPDX-License-Identifier: Apache-2.0
"""What a ring does otherwise while its writes are logged, for a live migration."""

from libc.errno cimport ENOSPC
from libc.stdint cimport uint8_t, uint32_t

from dirtylog cimport mark_areas, mark_mapped
from guestmem cimport GuestMemory
from notify cimport break_ring
from requests cimport Vring, give_back
from virtq cimport Chain
from worker cimport Worker


cdef inline void outrun_log(Worker *w, Vring *r) noexcept nogil:
    """Stop a ring that writes where the log has no bit: what it writes would not be migrated."""
    if not r.broken:
        break_ring(w, r, -ENOSPC)


cdef inline bint logged_areas(Worker *w, Vring *r) noexcept nogil:
    """Log our writes to a ring's own areas: whether the log, if any, has bits for them."""
    if w.log.bits == NULL or mark_areas(&w.log, &r.log, &r.vq):
        return True
    outrun_log(w, r)
    return False


cdef inline void give_back_logged(
    Worker *w, Vring *r, const GuestMemory *memory, const Chain *chain, uint8_t *status_byte,
    uint8_t status, uint32_t written, bint marked,
) noexcept nogil:
    """Give a chain back whose status is logged, as its data was if it could be `marked`.

    One that could not is not answered: the guest would go on with what is lost on its way.
    """
    status_byte[0] = status
    if marked and mark_mapped(&w.log, memory, status_byte, 1):
        give_back(r, chain, status_byte, status, written)
    else:
        outrun_log(w, r)
