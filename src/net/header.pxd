# SPDX-License-Identifier: Apache-2.0
"""The header before a packet that a guest sends (virtio 1.3, 5.1.6.2): checked before its use."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from net.layouts cimport (
    NET_GSO_ECN, NET_GSO_NONE, NET_HDR_F_NEEDS_CSUM, NetHeader,
)
from net.state cimport LONGEST_PACKET, NetParameters, SHORTEST_PACKET, allows


cdef enum:
    LEAST_SEGMENT = 48          # bytes: Linux's TCP_MIN_MSS; less would make thousands of packets


cdef inline bint has_checksum_place(const NetHeader *h, uint32_t length) noexcept nogil:
    """Whether the checksum lies within the packet."""
    return <uint32_t>h.csum_start + h.csum_offset + 2 <= length


cdef inline bint is_segmented_right(const NetParameters *p, const NetHeader *h) noexcept nogil:
    """Whether what a header says of large segments is something that was agreed upon.

    A packet to be cut up has its checksums left to us (5.1.6.2.1).
    """
    cdef uint8_t type = h.gso_type & ~<uint8_t>NET_GSO_ECN
    if type == NET_GSO_NONE:
        return h.gso_type == NET_GSO_NONE
    if not allows(p.gso_types, type) or (h.gso_type & NET_GSO_ECN and not p.ecn):
        return False
    return h.gso_size >= LEAST_SEGMENT and h.flags & NET_HDR_F_NEEDS_CSUM


cdef inline bint accept_header(
    const NetParameters *p, NetHeader *h, uint32_t length
) noexcept nogil:
    """Whether a packet of `length` bytes can be sent with this header, made ready for the TAP.

    Flags that mean nothing here are dropped; the length of headers is no more than a hint.
    """
    if length < SHORTEST_PACKET or length > LONGEST_PACKET - p.header_bytes:
        return False
    h.flags &= NET_HDR_F_NEEDS_CSUM
    if h.flags and not (p.checksums and has_checksum_place(h, length)):
        return False
    if not is_segmented_right(p, h):
        return False
    h.hdr_len = <uint16_t>min(<uint32_t>h.hdr_len, length)
    h.num_buffers = 0
    return True


cdef inline bint accept_received(
    const NetParameters *p, NetHeader *h, uint32_t length
) noexcept nogil:
    """Whether the guest takes a packet of `length` bytes with this header, made ready for it.

    The TAP may have kept it since it had another driver, or another MTU (5.1.4.1).
    """
    cdef uint8_t type = h.gso_type & ~<uint8_t>NET_GSO_ECN
    if not p.guest_checksums:
        if h.flags & NET_HDR_F_NEEDS_CSUM:
            return False
        h.flags = 0             # 5.1.6.4.1
    if type == NET_GSO_NONE:
        return h.gso_type == NET_GSO_NONE and (p.longest == 0 or length <= p.longest)
    return allows(p.guest_gso_types, type) and (p.guest_ecn or h.gso_type == type)
