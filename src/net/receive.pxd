# SPDX-License-Identifier: Apache-2.0
"""Packets for the guest: read from the TAP straight into buffers of the guest.

Buffers are fetched only while the TAP has packets, and those that are not used are put back when
the turn ends: between two turns nothing is in flight, unless more buffers are waited for.  How long
a packet is shows when it has been read.  So buffers are gathered for as much as packets had of
late, and behind them one of our own takes the rest of a packet that is longer; such a one is
copied.
"""

from libc.errno cimport EAGAIN, EFAULT, EINVAL
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from net.layouts cimport HEADER_BYTES, LEGACY_HEADER_BYTES, NET_GSO_ECN, NET_GSO_NONE
from net.state cimport (
    Buffer, LONGEST_PACKET, MAX_IOVECS, NET_FLAW_READABLE, NET_FLAW_SHORT, NetParameters, NetVring,
    allows, net_of, net_vring,
)
from net.tap cimport await_tap, lose_tap, read_packet
from sys.uring cimport iovec
from virtio.dirtylog cimport DirtyLog, mark_mapped
from virtio.flaw cimport FLAW_NONE, found_flaw
from virtio.guestmem cimport GuestMemory
from virtio.segments cimport readable_of
from virtio.virtq cimport Chain
from worker.fetching cimport put_back, take
from worker.logged cimport outrun_log
from worker.notify cimport report_fault
from worker.serving cimport served
from worker.state cimport Worker, hold, let_go
from worker.vring cimport Vring, bump, give_back

cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN

cdef enum:
    LEAST_EXPECTED = 2048       # bytes: a packet that is not merged of several
    TURN_PACKETS = 64           # of one vring before the others have their turn,
    TURN_BYTES = 1 << 18        # unless they are large


# ---- buffers ----

cdef inline int add_buffer(Worker *w, NetVring *v, const Chain *chain) noexcept nogil:
    """Gather a chain that was just fetched: 0, or -errno, which breaks the vring."""
    cdef Buffer *b = &v.buffers[v.buffer_count]
    cdef uint32_t header = net_of(w).parameters.header_bytes
    cdef uint32_t i, readable = readable_of(w.segments, chain.segments)
    if readable:
        return found_flaw(&v.vring.vq.flaw, NET_FLAW_READABLE, 0, readable, 0, EINVAL)
    b.chain = chain[0]
    b.iovecs = min(chain.segments, MAX_IOVECS - v.iov_count)
    b.bytes = 0
    for i in range(b.iovecs):
        v.iov[v.iov_count + i].iov_base = w.segments[i].base
        v.iov[v.iov_count + i].iov_len = w.segments[i].len
        b.bytes = <uint32_t>min(b.bytes + <uint64_t>w.segments[i].len, <uint64_t>LONGEST_PACKET)
    if b.bytes < header:
        return found_flaw(&v.vring.vq.flaw, NET_FLAW_SHORT, 0, b.bytes, header, EINVAL)
    v.iov_count += b.iovecs
    v.buffer_count += 1
    v.room += b.bytes
    return 0


cdef inline bint has_place(const Worker *w, const NetVring *v, uint32_t bytes) noexcept nogil:
    """Whether the buffers gathered take a packet of `bytes`, or all that may be gathered."""
    if v.buffer_count and not net_of(w).parameters.mergeable:
        return True             # each packet has one chain
    return v.room >= bytes


cdef inline int gather(Worker *w, Vring *r, uint32_t bytes) noexcept nogil:
    """Gather buffers for a packet of `bytes`, as far as there are: 0, or -errno.

    What is wrong with a chain counts when all before it are used.
    """
    cdef NetVring *v = net_vring(r)
    cdef Buffer *b
    cdef Chain chain
    cdef int rc = 1
    while rc > 0 and not has_place(w, v, bytes):
        # No driver can have given more than it has descriptors; a record would not end either.
        if r.used_count + v.buffer_count >= r.vq.size or v.iov_count + 1 >= MAX_IOVECS:
            return 0
        b = &v.buffers[v.buffer_count]
        b.before = r.vq.avail
        rc = take(w, r, &chain)
        if rc > 0:
            rc = add_buffer(w, v, &chain) or rc
            if rc < 0:          # it is recorded no more; its vring is behind it once that breaks
                put_back(r, &chain, b.before if v.buffer_count else r.vq.avail)
        elif rc < 0 and v.buffer_count:
            r.vq.avail = b.before
    if rc < 0 and v.buffer_count:
        r.vq.flaw.kind = FLAW_NONE
        return 0
    return min(rc, 0)


cdef inline void put_buffers_back(Vring *r) noexcept nogil:
    """Have the buffers that were not used available again, the last one first."""
    cdef NetVring *v = net_vring(r)
    while v.buffer_count:
        v.buffer_count -= 1
        put_back(r, &v.buffers[v.buffer_count].chain, v.buffers[v.buffer_count].before)
    v.iov_count = v.room = 0


cdef inline void keep_buffers(Worker *w, Vring *r) noexcept nogil:
    """Keep what is gathered until the driver has made more available."""
    cdef NetVring *v = net_vring(r)
    cdef uint32_t _
    for _ in range(v.buffer_count):
        v.pinned = hold(w, r)


cdef inline void resume_gathering(Worker *w, Vring *r) noexcept nogil:
    """Go on with the buffers that were kept."""
    cdef NetVring *v = net_vring(r)
    cdef uint32_t _
    if v.pinned != NULL:
        for _ in range(v.buffer_count):
            let_go(w, r, v.pinned)
        v.pinned = NULL


cdef inline void give_up_buffers(Worker *w, Vring *r) noexcept nogil:
    """Have buffers that were kept available again where the vring is to rest, or its memory to go.
    """
    cdef NetVring *v = net_vring(r)
    if v.pinned != NULL and not (served(w, r) and v.pinned == w.view):
        resume_gathering(w, r)
        put_buffers_back(r)


cdef inline bint are_all_gathered(const Vring *r) noexcept nogil:
    """Whether every descriptor of a vring is in the buffers gathered: there will be no more."""
    cdef const NetVring *v = net_vring(r)
    cdef uint32_t i, descriptors = 0
    for i in range(v.buffer_count):
        descriptors += v.buffers[i].chain.descriptors
    return descriptors >= r.vq.size


# ---- bytes ----

cdef inline void spread(
    const iovec *iov, uint32_t skipped, const uint8_t *source, uint32_t length
) noexcept nogil:
    """Copy `length` bytes into buffers, behind their first `skipped` bytes; there is room."""
    cdef size_t piece
    while length:
        if skipped >= iov.iov_len:
            skipped -= <uint32_t>iov.iov_len
        else:
            piece = min(iov.iov_len - skipped, <size_t>length)
            memcpy(<uint8_t *>iov.iov_base + skipped, source, piece)
            source += piece
            length -= <uint32_t>piece
            skipped = 0
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


cdef inline bint is_takable(const NetParameters *p, const iovec *iov) noexcept nogil:
    """Whether the guest takes a packet of this header: the TAP may have kept it for another driver.
    """
    cdef uint8_t start[2]       # flags and gso_type
    cdef uint8_t type
    collect(iov, start, sizeof(start))
    type = start[1] & ~<uint8_t>NET_GSO_ECN
    return type == NET_GSO_NONE or allows(p.guest_gso_types, type)


# ---- packets ----

cdef inline void give_packet(Worker *w, Vring *r, uint32_t length) noexcept nogil:
    """Give back the buffers at the front, which have a packet of `length` bytes with its header.

    Buffers are gathered for all of it.
    """
    cdef NetVring *v = net_vring(r)
    cdef const NetParameters *p = &net_of(w).parameters
    cdef uint32_t used = 0, iovecs = 0, left = length, i
    cdef uint16_t number
    while left:
        left -= min(left, v.buffers[used].bytes)
        iovecs += v.buffers[used].iovecs
        used += 1
    if p.header_bytes == HEADER_BYTES:
        number = <uint16_t>used
        spread(v.iov, LEGACY_HEADER_BYTES, <const uint8_t *>&number, sizeof(number))
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
    """Give the guest the packet that was kept: 1, 0 if buffers are missing, or -errno."""
    cdef NetVring *v = net_vring(r)
    cdef int rc = gather(w, r, v.spilled)
    if rc < 0 or v.buffer_count == 0:
        return rc
    if v.room < v.spilled:
        if net_of(w).parameters.mergeable and not are_all_gathered(r):
            return 0
        bump(&v.counters.oversized, 1)  # there will never be a place for it
    else:
        spread(v.iov, 0, v.spill, v.spilled)
        bump(&v.counters.copied, 1)
        give_packet(w, r, v.spilled)
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
    """
    cdef NetVring *v = net_vring(r)
    expect(v, length)
    if length >= LONGEST_PACKET or not is_takable(&net_of(w).parameters, v.iov):
        bump(&v.counters.oversized, 1)
        return 1
    if length <= v.room:
        give_packet(w, r, length)
        return 1
    collect(v.iov, v.spill, v.room)
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
    """Give the guest one packet: 1, 0 if buffers are missing, or -errno; -EAGAIN without one."""
    cdef NetVring *v = net_vring(r)
    cdef ssize_t n
    cdef int rc
    if v.spilled:
        return give_spilled(w, r)
    rc = gather(w, r, v.expected)
    if rc < 0 or v.buffer_count == 0:
        return rc
    n = read_into_buffers(v)
    if n >= 0:
        return take_packet(w, r, <uint32_t>n)
    if n == -EFAULT:
        report_fault(w)         # the guest's memory has gone, and a packet with it
        return 1
    if n != -EAGAIN:
        lose_tap(w, v)
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
    while rc > 0 and packets < TURN_PACKETS and v.counters.bytes - before < TURN_BYTES:
        rc = receive_one(w, r)
        packets += 1
    if rc == 0:
        keep_buffers(w, r)
    else:
        put_buffers_back(r)
    r.wanted = rc != -EAGAIN
    if rc == -EAGAIN:
        if not v.is_gone:
            await_tap(w, v, POLLIN)
        return 1
    return rc
