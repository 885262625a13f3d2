# SPDX-License-Identifier: Apache-2.0
"""What virtio 1.3 lays down in shared memory of virtqueues (2.7, 2.8): layouts and numbers only.

With those of requests, `blk.layouts`, the load generator has them in common with the back end.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef enum:
    DESC_F_NEXT = 1
    DESC_F_WRITE = 2
    DESC_F_INDIRECT = 4
    AVAIL_F_NO_INTERRUPT = 1
    USED_F_NO_NOTIFY = 1

    PACKED_F_AVAIL = 1 << 7     # these two against the wrap counters say whose it is (2.8.1)
    PACKED_F_USED = 1 << 15
    EVENT_ENABLE = 0            # of an event suppression structure's flags (2.8.10)
    EVENT_DISABLE = 1
    EVENT_DESC = 2
    EVENT_WRAP = 1 << 15        # of its `desc`: the wrap counter; the offset below


cdef struct Desc:               # of a split virtqueue, and of its indirect tables
    uint64_t addr               # guest physical
    uint32_t len                # bytes
    uint16_t flags
    uint16_t next


cdef struct UsedElem:
    uint32_t id
    uint32_t len                # bytes written to the guest


cdef struct PackedDesc:         # of a packed virtqueue, and of its indirect tables
    uint64_t addr               # guest physical
    uint32_t len                # bytes; in a used descriptor those written to the guest
    uint16_t id
    uint16_t flags


cdef struct EventSuppress:
    uint16_t desc               # offset in the ring, and the wrap counter
    uint16_t flags
