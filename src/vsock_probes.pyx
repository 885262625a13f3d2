# SPDX-License-Identifier: Apache-2.0
"""Doors for tests into the inline functions of a socket device; no part of a release."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from sys.uring cimport iovec
from virtio.virtq cimport Segment
from vsock.buffer cimport (
    Buffer as BufferState, add_from, clear, drop_message, first_message, give_to, kept, mark_end,
    pieces,
)
from vsock.credit cimport (
    Credit as CreditState, is_update_due, learn, may_receive, peer_free, tell,
)
from vsock.layouts cimport Header
from vsock.line cimport LONGEST_LINE, parse_connect, write_ok

cdef enum:
    BITS = 64                   # of a word of marks
    MOST_SEGMENTS = 8


def parse(bytes text):
    """What `parse_connect` says of a line: bytes of it, and the port."""
    cdef uint32_t port = 0
    cdef int rc = parse_connect(<const uint8_t *><const char *>text, len(text), &port)
    return rc, port


def ok(uint32_t port):
    """The answer to a line."""
    cdef uint8_t out[LONGEST_LINE]
    cdef uint32_t length = write_ok(out, port)
    return (<char *>out)[:length]


cdef class Credit:
    """The credit of one connection."""

    cdef CreditState state

    def __init__(self, uint32_t buf_alloc, uint32_t start=0):
        self.state.buf_alloc = buf_alloc
        self.state.received = self.state.fwd_cnt = self.state.told = start
        self.state.sent = self.state.peer_fwd_cnt = start

    def take(self, uint32_t length):
        """Receive from the guest: whether it was allowed to send this."""
        if not may_receive(&self.state, length):
            return False
        self.state.received += length
        return True

    def forward(self, uint32_t length):
        """Have bytes leave our buffer: whether the guest is to be told."""
        self.state.fwd_cnt += length
        return bool(is_update_due(&self.state))

    def tell(self):
        """What a packet to the guest says."""
        cdef Header h
        tell(&self.state, &h)
        return h.buf_alloc, h.fwd_cnt

    def learn(self, uint32_t buf_alloc, uint32_t fwd_cnt):
        """Take what the guest says: how much it may be sent."""
        cdef Header h
        memset(&h, 0, sizeof(h))
        h.buf_alloc, h.fwd_cnt = buf_alloc, fwd_cnt
        learn(&self.state, &h)
        return peer_free(&self.state)

    def send(self, uint32_t length):
        """Send the guest so much: how much it may be sent then."""
        self.state.sent += length
        return peer_free(&self.state)


cdef class Buffer:
    """A circular buffer of messages, of `size` bytes, that begins at any place."""

    cdef BufferState state
    cdef bytearray memory
    cdef bytearray ends
    cdef bytearray records

    def __init__(self, uint32_t size, uint32_t start=0):
        self.memory = bytearray(size)
        self.ends, self.records = bytearray(size // 8), bytearray(size // 8)
        self.state.base = <uint8_t *><char *>self.memory
        self.state.ends = <uint64_t *><char *>self.ends
        self.state.records = <uint64_t *><char *>self.records
        self.state.size = size
        self.state.head = self.state.tail = start

    def __len__(self):
        return kept(&self.state)

    def add(self, *parts):
        """Add what a chain of such buffers has."""
        cdef Segment segments[MOST_SEGMENTS]
        cdef Segment *at = segments
        cdef uint32_t count = len(parts)
        for i, part in enumerate(parts):
            segments[i].base = <uint8_t *><char *>part
            segments[i].len = len(part)
        add_from(&self.state, &at, &count, sum(map(len, parts)))

    def end(self, bint is_record=False):
        """A message ends here."""
        mark_end(&self.state, is_record)

    def message(self):
        """The first message, taken out, and whether it ends a record; None without a whole one."""
        cdef bint is_record = False
        cdef iovec out[2]
        cdef uint32_t length = first_message(&self.state, &is_record)
        if length == 0:
            return None
        taken = b"".join(
            [(<char *>out[i].iov_base)[:out[i].iov_len]
             for i in range(pieces(&self.state, length, out))]
        )
        drop_message(&self.state, length)
        return taken, bool(is_record)

    def give(self, *lengths):
        """Move bytes to buffers of these lengths."""
        cdef Segment segments[MOST_SEGMENTS]
        cdef Segment *at = segments
        cdef uint32_t count = len(lengths)
        places = [bytearray(length) for length in lengths]
        for i, place in enumerate(places):
            segments[i].base = <uint8_t *><char *>place
            segments[i].len = len(place)
        give_to(&self.state, &at, &count, sum(lengths))
        return b"".join(places)

    def clear(self):
        """Forget all: whether no mark is left."""
        clear(&self.state)
        return not any(self.ends) and not any(self.records)
