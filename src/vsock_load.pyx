# SPDX-License-Identifier: Apache-2.0
"""A driver of socket devices that only loads them, for measurements; no part of a release.

It shares nothing with what serves: split rings, one descriptor a packet, one connection.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from sys.atomics cimport full_fence, load_acquire_u16, load_relaxed_u16, store_release_u16
from virtio.layouts cimport DESC_F_WRITE, Desc, USED_F_NO_NOTIFY, UsedElem
from vsock.layouts cimport (
    Header, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW, TYPE_STREAM,
)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t count)
    ssize_t write(int fd, const void *buffer, size_t count)

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd *fds, unsigned long count, int milliseconds)

cdef enum:
    BUF_ALLOC = 1 << 18
    TOLD_EACH = 1 << 16         # bytes between two packets that say our credit
    PATIENCE = 5000             # milliseconds


cdef struct Ring:
    Desc *desc
    uint16_t *avail             # flags, idx, ring[size]
    uint16_t *used              # flags, idx, then UsedElem[size]
    uint8_t *buffers            # `size` of them
    uint32_t size
    uint16_t next_avail
    uint16_t next_used
    int kick
    int call


cdef inline UsedElem *used_elem(Ring *r, uint16_t index) noexcept nogil:
    return <UsedElem *>(r.used + 2) + (index & (r.size - 1))


cdef inline void offer(Ring *r, uint32_t number) noexcept nogil:
    """Make a buffer available; `publish` shows it."""
    r.avail[2 + (r.next_avail & (r.size - 1))] = <uint16_t>number
    r.next_avail += 1


cdef inline void publish(Ring *r) noexcept nogil:
    """Show what was made available, and kick if that is wanted."""
    cdef uint64_t one = 1
    store_release_u16(&r.avail[1], r.next_avail)
    full_fence()
    if not load_relaxed_u16(&r.used[0]) & USED_F_NO_NOTIFY:
        write(r.kick, &one, sizeof(one))


cdef class Load:
    """One connection of a guest, whose buffers have room for `payload` bytes each.

    `base` is where guest memory from `guest` on is mapped; a ring is (desc, avail, used, buffers,
    size, kick, call), the first four guest addresses.
    """

    cdef Ring rx
    cdef Ring tx
    cdef Header to              # as our packets begin
    cdef uint32_t stride        # of buffers
    cdef uint16_t spare         # tx buffers that were never sent
    cdef uint32_t sent
    cdef uint32_t received
    cdef uint32_t told
    cdef uint32_t peer_buf_alloc
    cdef uint32_t peer_fwd_cnt
    cdef bint is_open
    cdef bint is_reset

    def __init__(self, uint64_t base, uint64_t guest, rx, tx, uint32_t payload, uint64_t cid,
                 uint32_t port, uint32_t own_port):
        cdef uint32_t i
        self.stride = payload + sizeof(Header)
        set_ring(&self.rx, base, guest, rx)
        set_ring(&self.tx, base, guest, tx)
        for i in range(self.rx.size):
            self.rx.desc[i].addr = rx[3] + i * self.stride
            self.rx.desc[i].len, self.rx.desc[i].flags = self.stride, DESC_F_WRITE
            offer(&self.rx, i)
        for i in range(self.tx.size):
            self.tx.desc[i].addr, self.tx.desc[i].flags = tx[3] + i * self.stride, 0
        publish(&self.rx)
        memset(&self.to, 0, sizeof(self.to))
        self.to.src_cid, self.to.dst_cid = cid, 2
        self.to.src_port, self.to.dst_port, self.to.type = own_port, port, TYPE_STREAM
        self.to.buf_alloc = BUF_ALLOC

    cdef bint send(self, uint16_t op, uint32_t length) noexcept nogil:
        """Send a packet, if there is a buffer: whether there is."""
        cdef uint32_t number
        cdef Header *h
        if self.spare < self.tx.size:
            number = self.spare
            self.spare += 1
        elif load_acquire_u16(&self.tx.used[1]) != self.tx.next_used:
            number = used_elem(&self.tx, self.tx.next_used).id
            self.tx.next_used += 1
        else:
            return False
        h = <Header *>(self.tx.buffers + number * self.stride)
        h[0] = self.to
        h.op, h.len, h.fwd_cnt = op, length, self.received
        self.told = self.received
        self.sent += length
        self.tx.desc[number].len = sizeof(Header) + length
        offer(&self.tx, number)
        return True

    cdef bint take(self) noexcept nogil:
        """Take what the device gives: whether there was something."""
        cdef uint16_t end = load_acquire_u16(&self.rx.used[1])
        cdef const Header *h
        cdef uint32_t number
        if end == self.rx.next_used:
            return False
        while self.rx.next_used != end:
            number = used_elem(&self.rx, self.rx.next_used).id
            h = <const Header *>(self.rx.buffers + number * self.stride)
            self.peer_buf_alloc, self.peer_fwd_cnt = h.buf_alloc, h.fwd_cnt
            self.received += h.len
            self.is_open = self.is_open or h.op == OP_RESPONSE
            self.is_reset = self.is_reset or h.op == OP_RST
            self.rx.next_used += 1
            offer(&self.rx, number)
        publish(&self.rx)
        return True

    cdef bint wait(self) noexcept nogil:
        """Sleep until the device calls: whether it does."""
        cdef pollfd fds[2]
        cdef uint64_t count
        cdef uint32_t i
        fds[0].fd, fds[1].fd = self.rx.call, self.tx.call
        fds[0].events = fds[1].events = POLLIN
        if poll(fds, 2, PATIENCE) <= 0:
            return False
        for i in range(2):
            if fds[i].revents & POLLIN:
                read(fds[i].fd, &count, sizeof(count))
        return True

    def connect(self):
        """Connect; the other side accepts."""
        self.send(OP_REQUEST, 0)
        publish(&self.tx)
        while not self.is_open:
            if not self.take() and not self.wait() or self.is_reset:
                raise OSError("no connection")

    def send_all(self, uint64_t total, uint32_t piece):
        """Send so many bytes in packets of `piece`, as credit allows."""
        cdef bint goes_on = True
        with nogil:
            while total and goes_on and not self.is_reset:
                goes_on = self.send_some(&total, piece) or self.take() or self.wait()
        if total:
            raise OSError(f"{total} bytes were not taken")

    cdef bint send_some(self, uint64_t *total, uint32_t piece) noexcept nogil:
        """Send as many packets as can be now: whether there were any."""
        cdef bint some = False
        cdef uint32_t length = <uint32_t>min(total[0], <uint64_t>piece)
        self.take()
        while (
            length and self.peer_buf_alloc - (self.sent - self.peer_fwd_cnt) >= length
            and self.send(OP_RW, length)
        ):
            some = True
            total[0] -= length
            length = <uint32_t>min(total[0], <uint64_t>piece)
        if some:
            publish(&self.tx)
        return some

    def receive_all(self, uint64_t total):
        """Receive so many bytes, and give credit for them."""
        cdef bint goes_on = True
        cdef uint32_t before
        with nogil:
            while total and goes_on:
                before = self.received
                if not self.take():
                    goes_on = self.wait()
                total -= min(total, <uint64_t>(self.received - before))
                if self.received - self.told >= TOLD_EACH and self.send(OP_CREDIT_UPDATE, 0):
                    publish(&self.tx)
        if total:
            raise OSError(f"{total} bytes have not come")

    def ping(self, uint32_t count, uint32_t length):
        """Send `length` bytes and wait until as many have come back, `count` times."""
        for _ in range(count):
            self.send_all(length, length)
            self.receive_all(length)


cdef void *at(uint64_t base, uint64_t guest, uint64_t address) noexcept:
    """Where a guest address is mapped."""
    return <void *>(base + address - guest)


cdef void set_ring(Ring *r, uint64_t base, uint64_t guest, where) except *:
    """Note where a ring lies."""
    desc, avail, used, buffers, size, kick, call = where
    r.desc = <Desc *>at(base, guest, desc)
    r.avail = <uint16_t *>at(base, guest, avail)
    r.used = <uint16_t *>at(base, guest, used)
    r.buffers = <uint8_t *>at(base, guest, buffers)
    r.size, r.kick, r.call = size, kick, call


def address_of(memory):
    """Where a writable buffer lies."""
    cdef uint8_t[::1] view = memory
    return <uint64_t>&view[0]
