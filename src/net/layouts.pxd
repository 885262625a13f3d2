# SPDX-License-Identifier: Apache-2.0
"""What virtio 1.3 lays down in shared memory of a network device (5.1.6)."""

from libc.stdint cimport uint8_t, uint16_t


cdef enum:
    NET_HDR_F_NEEDS_CSUM = 1    # of a header's flags

    NET_GSO_NONE = 0            # its gso_type, but for NET_GSO_ECN
    NET_GSO_TCPV4 = 1
    NET_GSO_UDP = 3
    NET_GSO_TCPV6 = 4
    NET_GSO_ECN = 0x80          # a flag of it

    NET_CTRL_MQ = 4             # classes of commands, each with the one that is known of it
    NET_CTRL_MQ_VQ_PAIRS_SET = 0
    NET_CTRL_GUEST_OFFLOADS = 5
    NET_CTRL_GUEST_OFFLOADS_SET = 0

    NET_OK = 0                  # answers to commands
    NET_ERR = 1


cdef struct NetHeader:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len            # bytes of all headers, a hint
    uint16_t gso_size           # bytes of a segment, its headers aside
    uint16_t csum_start         # bytes of the packet before what is summed up
    uint16_t csum_offset        # ... and from there to the checksum
    uint16_t num_buffers        # of a packet received; absent from legacy headers


cdef enum:
    LEGACY_HEADER_BYTES = 10    # without num_buffers
    HEADER_BYTES = 12


cdef struct NetCommand:
    uint8_t type                # the class
    uint8_t command
