# SPDX-License-Identifier: Apache-2.0
"""Packets for the guest: read from the TAP straight into buffers of the guest.

How long a packet is shows when it has been read.  So buffers are gathered for as much as packets
had of late, and behind them one of our own takes the rest of a packet that is longer; such a one
is copied.
"""

from libc.errno cimport EAGAIN, EFAULT
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from net.buffers cimport (
    EMPTY, NO_MORE, are_all_gathered, gather, keep_buffers, put_buffers_back, refuse_behind,
    resume_gathering,
)
from net.header cimport accept_received
from net.layouts cimport NetHeader
from net.state cimport (
    Buffer, LONGEST_PACKET, NetParameters, NetVring, net_of, net_vring,
)
from net.tap cimport EBADFD, await_tap, lose_tap, read_packet
from sys.uring cimport iovec
from virtio.dirtylog cimport DirtyLog, mark_mapped
from virtio.guestmem cimport GuestMemory
from worker.logged cimport outrun_log
from worker.notify cimport report_fault
from worker.state cimport Worker
from worker.vring cimport Vring, bump, give_back

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN

cdef enum:
    TURN_ENDS = 3               # of receiving, beside EMPTY: there is more to do in the next turn

    LEAST_EXPECTED = 2048       # bytes: a packet that is not merged of several
    TURN_PACKETS = 64           # of one vring before the others have their turn,
    TURN_BYTES = 1 << 18        # unless they are large


# ---- bytes ----

cdef inline void spread(
    const iovec *iov, const uint8_t *source, uint32_t length
) noexcept nogil:
    """Copy `length` bytes into buffers; there is room."""
    cdef size_t piece
    while length:
        piece = min(iov.iov_len, <size_t>length)
        memcpy(iov.iov_base, source, piece)
        source += piece
        length -= <uint32_t>piece
        iov += 1


cdef inline void collect(const iovec *iov, uint8_t *to, uint32_t length) noexcept nogil:
    """Copy the first `length` bytes of buffers."""
    cdef size_t piece
    while length:
        piece = min(iov.iov_len, <size_t>length)
        memcpy(to, iov.iov_base, piece)
        to += piece
        length -= <uint32_t>piece
        iov += 1


cdef inline bint mark_bytes(
    DirtyLog *log, const GuestMemory *memory, const iovec *iov, uint32_t length
) noexcept nogil:
    """Mark the first `length` bytes of buffers in the dirty log: whether that could be."""
    cdef bint marked = True
    cdef uint32_t piece
    while length:
        piece = <uint32_t>min(iov.iov_len, <size_t>length)
        marked &= mark_mapped(log, memory, iov.iov_base, piece)
        length -= piece
        iov += 1
    return marked


# ---- packets ----

cdef inline void give_packet(
    Worker *w, Vring *r, NetHeader *header, uint32_t length
) noexcept nogil:
    """Give back the buffers at the front, which have a packet of `length` bytes but for its header.

    Buffers are gathered for all of it.
    """
    cdef NetVring *v = net_vring(r)
    cdef const NetParameters *p = &net_of(w).parameters
    cdef uint32_t used = 0, iovecs = 0, left = length, i
    while left:
        left -= min(left, v.buffers[used].bytes)
        iovecs += v.buffers[used].iovecs
        used += 1
    header.num_buffers = <uint16_t>used
    spread(v.iov, <const uint8_t *>header, p.header_bytes)
    if w.log.of_data and not mark_bytes(&w.log, w.view.memory, v.iov, length):
        outrun_log(w, r)
    bump(&v.counters.packets, 1)
    bump(&v.counters.bytes, length - p.header_bytes)
    left = length
    for i in range(used):
        give_back(r, &v.buffers[i].chain, min(left, v.buffers[i].bytes))
        left -= min(left, v.buffers[i].bytes)
        v.room -= v.buffers[i].bytes
    v.buffer_count -= used
    v.iov_count -= iovecs
    memmove(v.buffers, v.buffers + used, v.buffer_count * sizeof(Buffer))
    memmove(v.iov, v.iov + iovecs, v.iov_count * sizeof(iovec))


cdef inline int give_spilled(Worker *w, Vring *r) noexcept nogil:
    """Give the guest the packet that was kept: 1, EMPTY if buffers are missing, or -errno.

    One for which there will never be a place is dropped.
    """
    cdef NetVring *v = net_vring(r)
    cdef NetHeader header
    cdef int rc = gather(w, r, v.spilled)
    if rc < 0:
        return rc
    if v.room >= v.spilled:
        memcpy(&header, v.spill, sizeof(header))
        spread(v.iov, v.spill, v.spilled)
        bump(&v.counters.copied, 1)
        give_packet(w, r, &header, v.spilled)
        v.spilled = 0
        return 1
    if v.error:
        return refuse_behind(r)
    if net_of(w).parameters.mergeable or v.buffer_count == 0:
        if rc == NO_MORE and r.used_count:
            return TURN_ENDS    # the driver has some of them back then
        if rc == EMPTY and not are_all_gathered(r):
            return EMPTY
    bump(&v.counters.oversized, 1)
    v.spilled = 0
    return 1


cdef inline void expect(NetVring *v, uint32_t length) noexcept nogil:
    """Gather for as much as this packet had; less, by and by, where packets are small."""
    if length > v.expected:
        v.expected = LONGEST_PACKET
    else:
        v.expected = max(v.expected - (v.expected >> 4), max(length, <uint32_t>LEAST_EXPECTED))


cdef inline int take_packet(Worker *w, Vring *r, uint32_t length) noexcept nogil:
    """Give the guest a packet that was read, of `length` bytes: as `give_spilled`.

    What the buffers had no room for lies in `spill`, as far from its beginning as they are long.
    The header is read back from there and written anew: a guest that alters it fools itself.
    """
    cdef NetVring *v = net_vring(r)
    cdef const NetParameters *p = &net_of(w).parameters
    cdef NetHeader header
    expect(v, length)
    memset(&header, 0, sizeof(header))
    if length > p.header_bytes:
        collect(v.iov, <uint8_t *>&header, p.header_bytes)
    if length <= p.header_bytes or length >= LONGEST_PACKET or not accept_received(
        p, &header, length - p.header_bytes
    ):
        bump(&v.counters.oversized, 1)
        return 1
    if length <= v.room:
        give_packet(w, r, &header, length)
        return 1
    collect(v.iov, v.spill, v.room)
    memcpy(v.spill, &header, p.header_bytes)
    v.spilled = length
    return give_spilled(w, r)


cdef inline ssize_t read_into_buffers(NetVring *v) noexcept nogil:
    """Read a packet into the buffers gathered and, behind them, into `spill`: as `read_packet`."""
    cdef uint32_t count = v.iov_count
    if v.room < LONGEST_PACKET:
        v.iov[count].iov_base = v.spill + v.room
        v.iov[count].iov_len = LONGEST_PACKET - v.room
        count += 1
    return read_packet(v, v.iov, <int>count)


cdef inline int receive_one(Worker *w, Vring *r) noexcept nogil:
    """Give the guest one packet: 1, EMPTY if buffers are missing, TURN_ENDS, or -errno.

    -EAGAIN without a packet.
    """
    cdef NetVring *v = net_vring(r)
    cdef ssize_t n
    cdef int rc
    if v.spilled:
        return give_spilled(w, r)
    rc = gather(w, r, v.expected)
    if v.buffer_count == 0:
        return TURN_ENDS if rc == NO_MORE else rc
    n = read_into_buffers(v)
    if n >= 0:
        return take_packet(w, r, <uint32_t>n)
    if n == -EFAULT:
        report_fault(w)         # the guest's memory has gone, and a packet with it
        return 1
    if n == -EBADFD:
        lose_tap(w, v)
    elif n != -EAGAIN:
        bump(&v.counters.refused, 1)    # the host is short of memory, say
    return -EAGAIN


cdef inline int receive(Worker *w, Vring *r) noexcept nogil:
    """Give the guest what the TAP has, up to this vring's turn.

    Returns 1 if there may be more buffers, 0 if the driver has to make more available, or -errno,
    which breaks the vring.
    """
    cdef NetVring *v = net_vring(r)
    cdef uint64_t before = v.counters.bytes
    cdef int rc = 1, packets = 0
    resume_gathering(w, r)
    if not (v.is_ready or v.spilled) or v.is_gone:
        r.wanted = 0
        return 1
    while rc == 1 and packets < TURN_PACKETS and v.counters.bytes - before < TURN_BYTES:
        rc = receive_one(w, r)
        packets += 1
    if rc == EMPTY:
        keep_buffers(w, r)
    else:
        put_buffers_back(r)
    r.wanted = rc != -EAGAIN
    if rc == -EAGAIN:
        if not v.is_gone:
            await_tap(w, v, POLLIN)
        return 1
    return 1 if rc == TURN_ENDS else rc
