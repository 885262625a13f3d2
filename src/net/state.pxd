# SPDX-License-Identifier: Apache-2.0
"""What a network device keeps for a worker, and for each of its vrings.

Each vring that carries packets has one end of a TAP queue to itself: what is received on one
vring and sent on its pair's other meets nowhere, so that two workers may serve them.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from net.counters cimport NetCounters
from sys.uring cimport iovec
from virtio.flaw cimport FLAW_OF_DEVICE, Flaw
from virtio.guestmem cimport MemoryView
from virtio.virtq cimport Chain, Position
from worker.state cimport Device, Worker
from worker.vring cimport Vring


cdef enum NetRole:
    NET_RECEIVE                 # what the TAP has for the guest
    NET_TRANSMIT                # what the guest sends
    NET_CONTROL                 # its commands

cdef enum:
    NO_CONTROL = 0xffffffff
    # Bytes of the longest packet: 64 KiB, the headers of Ethernet and virtio, and some to spare, so
    # that one which would be longer shows.
    LONGEST_PACKET = 65536 + 128
    SHORTEST_PACKET = 14        # bytes of Ethernet's header (IEEE 802.3)
    MAX_IOVECS = 1022           # UIO_MAXIOV, but for one of our own

    REPORT_TAP_GONE = 1         # reports to the control thread
    REPORT_COMMAND = 2          # the control queue has a command: see `NetRequest`


cdef enum NetFlaw:              # as `blkd/virtio/net.py` says them
    NET_FLAW_READABLE = FLAW_OF_DEVICE  # value: buffers to be read of a chain to receive into
    NET_FLAW_SHORT              # value: bytes of a chain to receive into; limit: of a header
    NET_FLAW_NO_ACK             # value: buffers of a command, none of which is to be written


cdef struct NetParameters:
    # As CMD_CONFIGURE brings them.
    uint32_t header_bytes       # before each packet, on both sides
    uint32_t gso_types          # that the guest may send, a bit each
    uint32_t guest_gso_types    # ... that it takes
    uint32_t control            # the device's number of the control queue; NO_CONTROL without
    bint mergeable              # a packet received may fill several chains
    bint checksums              # the guest may leave checksums to us
    bint ecn                    # ... and send large segments that say ECN
    bint guest_checksums        # the guest takes packets without a checksum
    bint guest_ecn              # ... and large segments that say ECN
    uint32_t longest            # bytes of a packet for the guest that is no large segment, or 0
    uint64_t answered           # the number of the last command that was carried out
    uint8_t answer              # its answer


cdef struct Buffer:
    # A chain fetched to be received into, and not used yet.
    Chain chain
    Position before             # of the vring's next chain, as it was before this one was fetched
    uint32_t iovecs
    uint32_t bytes              # room, LONGEST_PACKET at the most


cdef struct NetRequest:
    # A command that the control thread carries out.  Written by the worker before it reports.
    uint64_t number             # from 1 on; 0 before the first
    uint8_t type                # the class
    uint8_t command
    uint64_t value              # what it carries
    bint is_open                # worker: it waits for its answer
    Chain chain
    MemoryView *pinned
    uint8_t *ack                # in guest memory


cdef struct NetVring:
    # All fields are the worker's; the control thread reads the counters and the request.
    # The first three are written by the control thread before the worker runs.
    uint32_t index              # the device's number of the vring
    int fd                      # the TAP queue; -1 where there is none for it
    int io_flags                # of preadv2 and pwritev2
    NetRole role                # since the vring started
    Vring *vring
    bint is_polled              # the kernel is asked to say when the TAP is ready
    bint is_ready               # the TAP may have a packet, or room for one
    bint is_gone                # the TAP exists no more
    MemoryView *pinned          # by buffers that wait, fetched, for more of them; NULL without any
    Flaw flaw                   # of the chain behind those gathered, if `gather` found one
    int error                   # ... and what it found: -errno
    uint32_t expected           # bytes for which buffers are gathered
    uint32_t spilled            # bytes of the packet in `spill`, which waits for buffers; 0 without
    uint8_t *spill              # LONGEST_PACKET bytes
    Buffer *buffers             # the first `buffer_count` are gathered
    uint32_t buffer_count
    iovec *iov                  # what they consist of, `iov_count` in all; room for one more
    uint32_t iov_count
    uint32_t room               # bytes of them
    NetRequest request
    NetCounters counters


cdef struct Net:
    Device device               # has to be the first
    NetParameters parameters    # worker, replaced by CMD_CONFIGURE
    NetVring *vrings            # `device.vrings` of them


cdef inline Net *net_of(const Worker *w) noexcept nogil:
    return <Net *>w.device


cdef inline NetVring *net_vring(const Vring *r) noexcept nogil:
    return <NetVring *>r.part


cdef inline NetRole role_of(const NetParameters *p, uint32_t index) noexcept nogil:
    """What a vring of the device is for (virtio 1.3, 5.1.2)."""
    if index == p.control:
        return NET_CONTROL
    return NET_TRANSMIT if index & 1 else NET_RECEIVE


cdef inline bint allows(uint32_t gso_types, uint8_t type) noexcept nogil:
    """Whether a type of segmentation, without flags, is among those that were agreed upon."""
    return type < 32 and gso_types >> type & 1
