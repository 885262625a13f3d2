# SPDX-License-Identifier: Apache-2.0
"""What virtio 1.3 lays down of a socket device's packets and events (5.10.6)."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef enum:
    RX = 0                      # vrings
    TX = 1
    EVENT = 2

    CID_HOST = 2

    TYPE_STREAM = 1
    TYPE_SEQPACKET = 2

    OP_REQUEST = 1
    OP_RESPONSE = 2
    OP_RST = 3
    OP_SHUTDOWN = 4
    OP_RW = 5
    OP_CREDIT_UPDATE = 6
    OP_CREDIT_REQUEST = 7

    WILL_NOT_RECEIVE = 1        # flags of OP_SHUTDOWN, by who sends it
    WILL_NOT_SEND = 2
    BOTH = 3

    SEQ_EOM = 1                 # flags of OP_RW: the last packet of a message
    SEQ_EOR = 2                 # ... and of a record

    EVENT_TRANSPORT_RESET = 0

    MOST_PAYLOAD = 1 << 16      # bytes of one packet, as Linux has it

    F_STREAM = 0                # numbers of feature bits
    F_SEQPACKET = 1
    F_NO_IMPLIED_STREAM = 2


cdef packed struct Header:
    uint64_t src_cid
    uint64_t dst_cid
    uint32_t src_port
    uint32_t dst_port
    uint32_t len
    uint16_t type
    uint16_t op
    uint32_t flags
    uint32_t buf_alloc
    uint32_t fwd_cnt


cdef struct Event:
    uint32_t id
