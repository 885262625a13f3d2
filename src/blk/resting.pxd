# SPDX-License-Identifier: Apache-2.0
"""Requests at rest: not answered, not with the engine, and in nobody's way.

Such a request stays recorded as in flight, so a vring without a record has none.  It pins no
memory, counts as no request in flight, and has addresses of the guest where it had those of its
mapped buffers.  So guest memory may change meanwhile, and whoever waits until nothing is in flight
does not wait for it.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blk.request cimport Request, touches
from virtio.guestmem cimport GuestMemory, guest_address, translate_whole
from virtio.iotlb cimport MOST_REMOVED
from worker.state cimport Worker, keep, let_go
from worker.vring cimport Vring


cdef enum:
    NO_ADDRESS = 0xffffffffffffffff     # that no guest memory has


cdef inline bint may_stay_recorded(const Worker *w, const Vring *r) noexcept nogil:
    """Whether who serves a vring next finds what is recorded, and does it.

    The guest may go on elsewhere while data is logged: there, nobody knows of it.
    """
    return r.inflight.is_lent and not w.log.of_data


cdef inline uint64_t address_of(const GuestMemory *memory, const void *base) noexcept nogil:
    """The guest's address of what is mapped at `base`."""
    cdef uint64_t address = NO_ADDRESS
    guest_address(memory, <const uint8_t *>base, &address)
    return address


cdef inline void leave_memory(Worker *w, Request *q) noexcept nogil:
    """Have a request keep no memory: it is not in flight any more."""
    cdef const GuestMemory *memory = q.pinned.memory
    cdef uint32_t i
    for i in range(q.data_count):
        q.data[i].iov_base = <void *>address_of(memory, q.data[i].iov_base)
    q.status_byte = <uint8_t *>address_of(memory, q.status_byte)
    let_go(w, q.vring, q.pinned)
    q.pinned = NULL


cdef inline bint is_mapped(const GuestMemory *memory, const Request *q) noexcept nogil:
    """Whether all that a request at rest names lies in this memory, each buffer in one piece."""
    cdef uint32_t i, near = 0
    for i in range(q.data_count):
        if q.data[i].iov_len and translate_whole(
            memory, <uint64_t>q.data[i].iov_base, q.data[i].iov_len, &near
        ) == NULL:
            return False
    return translate_whole(memory, <uint64_t>q.status_byte, 1, &near) != NULL


cdef inline bint return_to_memory(Worker *w, Request *q) noexcept nogil:
    """Have a request at rest in flight again, if its vring and buffers have a place: whether so."""
    cdef uint32_t i, near = 0
    cdef const GuestMemory *memory
    if w.view == NULL or not q.vring.is_placed or not is_mapped(w.view.memory, q):
        return False
    memory = w.view.memory
    q.pinned = keep(w, q.vring)
    for i in range(q.data_count):
        q.data[i].iov_base = translate_whole(
            memory, <uint64_t>q.data[i].iov_base, q.data[i].iov_len, &near
        )
    q.status_byte = translate_whole(memory, <uint64_t>q.status_byte, 1, &near)
    return True


cdef inline bint is_taken_away(Worker *w, Request *q) noexcept nogil:
    """Whether an invalidation of the IOTLB may have taken away what a request names."""
    cdef bint touched
    if w.iotlb.vrings >> q.vring.number & 1 or w.iotlb.removed_count > MOST_REMOVED:
        return True
    if q.pinned != NULL:
        return touches(q, w.iotlb.removed, w.iotlb.removed_count)
    if not return_to_memory(w, q):
        return True
    touched = touches(q, w.iotlb.removed, w.iotlb.removed_count)
    leave_memory(w, q)
    return touched
