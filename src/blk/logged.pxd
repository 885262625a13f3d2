# SPDX-License-Identifier: Apache-2.0
"""Answers whose data and status are logged, for a live migration."""

from libc.stdint cimport uint8_t, uint32_t

from virtio.dirtylog cimport mark_mapped
from virtio.guestmem cimport GuestMemory
from virtio.virtq cimport Chain
from worker.logged cimport outrun_log
from worker.state cimport Worker
from worker.vring cimport Vring, give_back


cdef inline void give_back_logged(
    Worker *w, Vring *r, const GuestMemory *memory, const Chain *chain, uint8_t *status_byte,
    uint8_t status, uint32_t written, bint marked,
) noexcept nogil:
    """Give a chain back whose status is logged, as its data was if it could be `marked`.

    One that could not is not answered: the guest would go on with what is lost on its way.
    """
    status_byte[0] = status
    if marked and mark_mapped(&w.log, memory, status_byte, 1):
        give_back(r, chain, written + 1)    # and the status
    else:
        outrun_log(w, r)
