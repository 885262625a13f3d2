# SPDX-License-Identifier: Apache-2.0
"""A worker that serves one ring of a null image, to count what that costs; no part of a release."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import os

from blk.layouts cimport BlkHeader
from blk.limits_page cimport LimitsPage
from blk.request cimport BlkVring, Request
from blk.serving cimport be_blk
from blk.state cimport Blk
from engine.engine cimport ENGINE_NULL
from figures.slot cimport Slot as FiguresSlot
from inflight.recovery cimport recover
from sys.uring cimport iovec
from virtio.guestmem cimport GuestMemory, MemoryView, Region
from virtio.iotlb cimport ACCESS_BOTH, iotlb_bytes, lay_out_iotlb, learn
from virtio.layouts cimport (
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Desc, PACKED_F_AVAIL, PACKED_F_USED, PackedDesc,
)
from virtio.packed cimport FIRST_BASE
from virtio.virtq cimport Segment, UsedChain
from virtio.virtqueue cimport start
from worker.serving cimport serve_rings
from worker.state cimport Worker
from worker.states cimport RUNNING
from worker.vring cimport Vring


cdef enum:
    LOOP_SIZE = 128             # descriptors
    LOOP_BATCH = 32             # requests
    LOOP_BLOCK = 4096           # bytes of a request's data
    LOOP_SLOT = 256             # bytes for a request's indirect table, header and status
    LOOP_CAPACITY = 1 << 30


cdef struct Slot:               # laid out as Linux does it, 3 descriptors in a table
    Desc table[3]
    BlkHeader header
    uint8_t status


cdef class HotLoop:
    """Serves batches of 4 KiB reads from an indirect table each, without a kernel or a guest.

    `offer` plays the driver, `serve` is the worker's turn; only the latter is to be counted.
    """

    cdef Worker worker
    cdef Blk blk
    cdef BlkVring part
    cdef LimitsPage page
    cdef Vring vring
    cdef MemoryView view
    cdef FiguresSlot figures
    cdef GuestMemory memory
    cdef Region region
    cdef uint8_t *base
    cdef Segment segments[16]
    cdef iovec iovecs[16]
    cdef Request requests[LOOP_SIZE]
    cdef uint32_t free[LOOP_SIZE]
    cdef UsedChain used[LOOP_SIZE + LOOP_BATCH]
    cdef bint wrap              # the driver's counter of a packed ring
    cdef uint8_t record[64 * LOOP_SIZE]     # the in-flight region
    cdef uint16_t links[LOOP_SIZE]
    cdef uint16_t lasts[LOOP_SIZE]
    cdef uint32_t next          # descriptor that the driver of a packed ring fills next

    def __cinit__(self, bint packed=False, bint recorded=False, bint translated=False):
        cdef size_t rings = 16 * LOOP_SIZE + 8192
        cdef size_t size = rings + LOOP_SIZE * (LOOP_SLOT + LOOP_BLOCK)
        self.base = <uint8_t *>calloc(1, size)
        if self.base == NULL:
            raise MemoryError
        self.region.size, self.region.base = size, self.base
        self.memory.regions, self.memory.count = &self.region, 1
        self.view.memory = &self.memory
        be_blk(&self.blk.device)
        self.worker.device = &self.blk.device
        self.worker.slot = &self.figures
        self.blk.page = &self.page
        self.blk.engine.kind, self.blk.engine.iovecs = ENGINE_NULL, self.iovecs
        self.blk.limits.capacity, self.blk.limits.block_mask = LOOP_CAPACITY, 511
        self.worker.view, self.worker.vrings, self.worker.count = &self.view, &self.vring, 1
        self.worker.addresses = &self.memory
        if translated:
            self.translate()
        self.worker.segments, self.worker.segment_room = self.segments, 16
        self.part.requests, self.part.free, self.vring.used = (
            self.requests, self.free, self.used
        )
        self.blk.vrings = &self.part
        self.vring.error = -1
        self.vring.state, self.vring.enabled = RUNNING, True
        self.worker.started[0], self.worker.started_count = &self.vring, 1
        self.vring.vq.packed, self.vring.vq.indirect, self.vring.vq.event_idx = packed, 1, 1
        self.vring.vq.size = self.vring.vq.longest_chain = LOOP_SIZE
        self.vring.vq.desc = self.base
        self.vring.vq.driver = self.base + 16 * LOOP_SIZE
        self.vring.vq.device = self.base + 16 * LOOP_SIZE + 4096
        self.wrap = True
        first = FIRST_BASE if packed else 0
        start(&self.vring.vq, first)
        if recorded:
            self.vring.inflight.region, self.vring.inflight.entries = self.record, LOOP_SIZE
            self.vring.inflight.next, self.vring.inflight.last = self.links, self.lasts
            rc = recover(&self.vring.inflight, &self.vring.vq, first, False)
            if rc < 0:
                raise OSError(-rc, os.strerror(-rc))
        self.worker.device.open(&self.worker)
        self.worker.device.start(&self.worker, &self.vring)
        for i in range(LOOP_SIZE):
            self.lay_out(i, rings)

    cdef void translate(self) except *:
        """Have addresses be IOVAs of a guest behind an IOMMU, all of which are known."""
        self.memory.by_base = &self.region
        self.worker.iotlb = lay_out_iotlb(calloc(1, iotlb_bytes(4, 0)), 4)
        learn(self.worker.iotlb, &self.memory, &self.region, ACCESS_BOTH)
        self.worker.addresses = &self.worker.iotlb.memory

    cdef void lay_out(self, uint32_t i, size_t rings) noexcept:
        """Write slot `i`, and the descriptor and avail entry of a split ring."""
        cdef size_t at = rings + i * LOOP_SLOT, data = rings + LOOP_SIZE * LOOP_SLOT
        cdef Slot *slot = <Slot *>(self.base + at)
        self.entry(slot, 0, at + sizeof(slot.table), sizeof(BlkHeader), 0)
        self.entry(slot, 1, data + i * LOOP_BLOCK, LOOP_BLOCK, DESC_F_WRITE)
        self.entry(slot, 2, at + sizeof(slot.table) + sizeof(BlkHeader), 1, DESC_F_WRITE)
        slot.header.sector = i * 8
        if not self.vring.vq.packed:
            (<Desc *>self.base)[i].addr, (<Desc *>self.base)[i].len = at, sizeof(slot.table)
            (<Desc *>self.base)[i].flags = DESC_F_INDIRECT
            (<uint16_t *>self.vring.vq.driver)[2 + i] = i

    cdef void entry(self, Slot *slot, uint16_t n, uint64_t address, uint32_t length,
                    uint16_t flags) noexcept:
        """Write entry `n` of a slot's indirect table, in the ring's layout."""
        cdef PackedDesc *packed = <PackedDesc *>&slot.table[n]
        slot.table[n].addr, slot.table[n].len = address, length
        if self.vring.vq.packed:
            packed.flags = flags
            return
        slot.table[n].flags, slot.table[n].next = flags | (DESC_F_NEXT if n < 2 else 0), n + 1

    def __dealloc__(self):
        free(self.base)
        free(self.worker.iotlb)

    def offer(self):
        """Make a batch available."""
        cdef size_t rings = 16 * LOOP_SIZE + 8192
        cdef PackedDesc *d
        cdef uint32_t _
        if not self.vring.vq.packed:
            (<uint16_t *>self.vring.vq.driver)[1] += LOOP_BATCH
            return
        for _ in range(<uint32_t>LOOP_BATCH):
            d = <PackedDesc *>self.base + self.next
            d.addr, d.len, d.id = rings + self.next * LOOP_SLOT, 3 * sizeof(Desc), self.next
            d.flags = DESC_F_INDIRECT | (PACKED_F_AVAIL if self.wrap else PACKED_F_USED)
            self.next = (self.next + 1) % LOOP_SIZE
            self.wrap ^= self.next == 0

    def serve(self):
        """Fetch, answer and publish what is available: the number of reads served so far."""
        self.vring.wants_look = True
        with nogil:
            serve_rings(&self.worker)
        return self.part.counters.reads
