# SPDX-License-Identifier: Apache-2.0
"""Doors for tests into the data path's inline functions; no part of a release."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import os

from guestmem cimport GuestMemory, Region
from layouts cimport BlkRange, Desc
from virtio_blk cimport BlkLimits, MAX_RANGES, Operation, parse_request
from virtq cimport (
    Segment, Virtq, event_passed, next_chain, publish, put_used, rearm_kicks, walk_chain,
)

cdef enum:
    MAX_REGIONS = 8
    MAX_SEGMENTS = 2048


cdef class Guest:
    """Guest memory of a few regions, given as (guest address, bytearray), and one ring in it.

    The ring's parts lie at guest addresses `desc`, `avail` and `used`.
    """

    cdef Region regions[MAX_REGIONS]
    cdef GuestMemory memory
    cdef Virtq vq
    cdef Segment segments[MAX_SEGMENTS]
    cdef list buffers           # (guest address, bytearray), kept alive

    def __init__(self, regions, *, int size, uint64_t desc, uint64_t avail, uint64_t used,
                 bint indirect=True, bint event_idx=False, int longest_chain=0):
        cdef uint8_t[::1] view
        self.buffers = sorted(regions)
        self.memory.regions = self.regions
        self.memory.count = len(self.buffers)
        for i, (address, data) in enumerate(self.buffers):
            view = data
            self.regions[i].guest_address = address
            self.regions[i].size = len(data)
            self.regions[i].base = &view[0]
        memset(&self.vq, 0, sizeof(self.vq))
        self.vq.size = size
        self.vq.longest_chain = max(size, longest_chain)
        self.vq.indirect, self.vq.event_idx = indirect, event_idx
        self.vq.desc = <const Desc *>self.at(desc)
        self.vq.avail = <uint16_t *>self.at(avail)
        self.vq.used = <uint16_t *>self.at(used)

    cdef uint8_t *at(self, uint64_t address) except NULL:
        for i in range(self.memory.count):
            if 0 <= address - self.regions[i].guest_address < self.regions[i].size:
                return self.regions[i].base + (address - self.regions[i].guest_address)
        raise ValueError(f"{address:#x} is in no region")

    def walk(self, uint16_t head, uint32_t room=MAX_SEGMENTS):
        """The chain's segments as (guest address, length, device writes); OSError if refused."""
        cdef int n = walk_chain(&self.vq, head, &self.memory, self.segments, room)
        if n < 0:
            raise OSError(-n, os.strerror(-n))
        return [self.describe(&self.segments[i]) for i in range(n)]

    cdef tuple describe(self, const Segment *s):
        for i in range(self.memory.count):
            if self.regions[i].base <= s.base < self.regions[i].base + self.regions[i].size:
                address = self.regions[i].guest_address + (s.base - self.regions[i].base)
                return (address, s.len, bool(s.device_writes))
        raise AssertionError("a segment outside guest memory")

    def parse(self, uint16_t head, *, uint64_t capacity, uint32_t block_size=512,
              bint read_only=False, uint32_t max_sectors=0, uint32_t max_ranges=4):
        """What the request at `head` becomes, as a dict; OSError if it breaks the ring."""
        cdef BlkLimits limits
        cdef BlkRange ranges[MAX_RANGES]
        cdef Operation op
        cdef int n = walk_chain(&self.vq, head, &self.memory, self.segments, MAX_SEGMENTS)
        memset(&limits, 0, sizeof(limits))
        limits.capacity, limits.block_mask = capacity, block_size - 1
        limits.read_only = read_only
        limits.max_discard_sectors = limits.max_zero_sectors = max_sectors
        limits.max_ranges = max_ranges
        memcpy(limits.serial, b"serial-of-20-letters", 20)
        if n >= 0:
            n = parse_request(&limits, self.segments, n, &op, ranges)
        if n < 0:
            raise OSError(-n, os.strerror(-n))
        return {
            "kind": op.kind, "status": op.status, "offset": op.offset, "length": op.length,
            "written": op.written,
            "data": [self.describe(&op.data[i]) for i in range(op.data_count)],
        }

    def next_chain(self):
        """The next available head, or None; OSError on a wild index."""
        cdef uint16_t head
        cdef int rc = next_chain(&self.vq, &head)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return head if rc else None

    def give_back(self, *heads):
        """Put chains into the used ring and publish them: whether the driver wants a call."""
        for head in heads:
            put_used(&self.vq, head, 1)
        return bool(publish(&self.vq))

    def rearm(self):
        """Ask for kicks again: whether there is more already."""
        return bool(rearm_kicks(&self.vq))

    def set_indices(self, uint16_t index):
        """Pretend that `index` chains have been served."""
        self.vq.next_avail = self.vq.next_used = self.vq.signalled = index


def passed(uint16_t event, uint16_t now, uint16_t before):
    """Whether `event` was crossed between two indices."""
    return bool(event_passed(event, now, before))
