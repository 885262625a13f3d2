# SPDX-License-Identifier: Apache-2.0
"""The load generator: one thread that polls all virtqueues of a vhost-user-blk front end.

Above the line `Python face` nothing holds the GIL, allocates, logs or raises.  Requests are
taken back and sent again in batches; a batch costs one look at the clock for each way, one
store of an index and one decision about a kick.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from blk.layouts cimport SECTOR_SHIFT
from loadgen.blocks cimport DAMAGED, FOREIGN, MISPLACED, ODD_1, OTHER_SEED, STALE, mix
from loadgen.clock cimport Clock, HAS_COUNTER, calibrate, ns_of, ticks, ticks_of
from loadgen.histogram cimport BUCKETS, Histogram, lowest_of
from loadgen.load cimport BAD_LENGTH, BAD_STATUS, Load, Work
from loadgen.queue cimport NO_KICK, Queue, STALLED, WILD_ID, WILD_INDEX, hush, lay_out_slot
from loadgen.reap cimport reap_packed, reap_split
from loadgen.send cimport send
from loadgen.slots cimport Frame, KINDS, Kind, MAX_PARTS, Part, Slot, blk_type, make_parts
from sys.atomics cimport load_acquire_u32, pause, store_release_u32
from virtio.layouts cimport Desc, EventSuppress, PackedDesc

cdef enum:
    SPINS_A_LOOK = 64           # at the clock, while nothing comes back: a microsecond or so


cdef enum Stop:                 # what the control thread asks for
    GO_ON
    DRAIN                       # send nothing more, and wait for what is out
    ABANDON


# ---- the loop ----

cdef inline int turn(Load *g) noexcept nogil:
    """Look at every queue once: how many requests came back, or what is wrong."""
    cdef uint32_t i
    cdef int n, all = 0
    cdef Queue *q
    for i in range(g.count):
        q = &g.queues[i]
        n = reap_packed(g, q) if q.packed else reap_split(g, q)
        if n < 0:
            return n
        all += n
        g.in_flight -= n
        if g.sending and q.free_count:
            n = send(g, q)
            if n < 0:
                return n
    return all


cdef inline bint over(Load *g, bint progressed) noexcept nogil:
    """Whether the stretch has ended; also finds out when to send no more."""
    if progressed or g.in_flight == 0:
        g.last_progress = g.now
    if g.work.run_ticks and g.now - g.began >= g.work.run_ticks:
        g.sending = False
    if g.work.limit and g.sent >= g.work.limit:
        g.sending = False
    return not g.sending and g.in_flight == 0


cdef int drive(Load *g) noexcept nogil:
    """Do the work, from nothing in flight to nothing in flight: 0, or what is wrong."""
    cdef uint32_t spins = 0, stop
    cdef int n
    g.began = g.last_progress = g.now = ticks(&g.clock)
    while True:
        n = turn(g)
        if n < 0:
            return n
        if n == 0:
            pause()
            spins += 1
            if spins % SPINS_A_LOOK:
                continue
            g.now = ticks(&g.clock)
        stop = load_acquire_u32(&g.stop)
        if stop:
            g.sending = False
        if over(g, n > 0) or stop == ABANDON:
            g.ended = g.now
            return 0
        if g.now - g.last_progress > g.work.stall_ticks:
            return STALLED


cdef void lay_out(Load *g) noexcept nogil:
    """Write every slot's chain for requests of the work's kind.  Nothing is in flight."""
    cdef Part parts[MAX_PARTS]
    cdef uint32_t i, k, n
    cdef uint64_t base
    cdef Queue *q
    cdef Slot *s
    for i in range(g.count):
        q = &g.queues[i]
        for k in range(q.depth):
            s = &q.slots[k]
            # The table's two addresses give those of all that lies in guest memory.
            base = s.table_address - <uint64_t>s.table
            n = make_parts(
                &g.shape, g.work.kind, <uint64_t>s.frame + base, <uint64_t>s.data + base, parts
            )
            q.chain, q.in_ring = n, 1 if q.indirect else n
            lay_out_slot(q, k, parts, n)
            s.kind, s.kept = g.work.kind, 0
            s.frame.header.type = blk_type(s.kind)
            s.frame.header.reserved = s.frame.header.sector = 0
            s.frame.range.flags = 0
            s.frame.range.sectors = g.work.block_bytes >> SECTOR_SHIFT


# ---- Python face ----

KIND_NAMES = ("read", "write", "flush", "trim")
"""What a request can be; a number of a kind is its place here."""

WRONG_NAMES = {
    WILD_INDEX: "wild-index", WILD_ID: "wild-id", STALLED: "stalled", NO_KICK: "no-kick",
}
WHAT_NAMES = {
    FOREIGN: "foreign", DAMAGED: "damaged", MISPLACED: "misplaced", OTHER_SEED: "other-seed",
    STALE: "stale",
    BAD_STATUS: "bad-status", BAD_LENGTH: "bad-length",
}


cdef class Generator:
    """Virtqueues in shared `memory`, a writable buffer, and a thread-to-be that loads them.

    `memory` lies at guest address `guest_address`.  Every queue is added before the first
    `run`.  One thread runs; `stop` and the figures are for any.
    """

    cdef Load load
    cdef uint8_t[::1] memory
    cdef uint64_t guest_address
    cdef uint32_t room

    def __cinit__(self, memory, *, uint64_t guest_address, uint32_t queues, uint64_t seed,
                  bint counter):
        self.memory = memory
        self.guest_address = guest_address
        self.room = queues
        self.load.random = mix(seed * ODD_1) or 1
        self.load.clock.by_counter = counter and HAS_COUNTER
        self.load.queues = <Queue *>calloc(queues, sizeof(Queue))
        self.load.histograms = <Histogram *>calloc(KINDS, sizeof(Histogram))
        if self.load.queues == NULL or self.load.histograms == NULL:
            raise MemoryError
        with nogil:
            calibrate(&self.load.clock)
        self.clear()

    def __dealloc__(self):
        if self.load.queues != NULL:
            for i in range(self.load.count):
                free(self.load.queues[i].slots)
                free(self.load.queues[i].free)
        free(self.load.queues)
        free(self.load.histograms)

    cdef uint8_t *at(self, uint64_t offset, uint64_t length) except NULL:
        """Where in memory something of `length` bytes lies."""
        if length > <uint64_t>len(self.memory) or offset > len(self.memory) - length:
            raise ValueError(f"{length} bytes at {offset} of {len(self.memory)}")
        return &self.memory[offset]

    def add_queue(self, *, uint64_t desc, uint64_t avail, uint64_t used, uint64_t frames,
                  uint64_t tables, uint64_t data, uint32_t size, uint32_t depth,
                  uint32_t frame_stride, uint32_t table_stride, uint64_t data_stride, int kick,
                  bint packed, bint event_idx, bint indirect) -> None:
        """Add a queue of `size` descriptors for `depth` requests; places are offsets.

        `kick` is borrowed and has to outlive the generator's last `run`.
        """
        cdef Queue *q = &self.load.queues[self.load.count]
        if self.load.count == self.room or not 0 < depth <= size <= 1 << 15:
            raise ValueError(f"queue {self.load.count} of {depth} requests and {size} entries")
        q.slots = <Slot *>calloc(depth, sizeof(Slot))
        q.free = <uint16_t *>calloc(depth, sizeof(uint16_t))
        self.load.count += 1
        if q.slots == NULL or q.free == NULL:
            raise MemoryError
        q.size, q.depth, q.free_count, q.kick = size, depth, depth, kick
        q.table_bytes = table_stride
        q.packed, q.event_idx, q.indirect = packed, event_idx, indirect
        if packed:
            q.ring = <PackedDesc *>self.at(desc, size * sizeof(PackedDesc))
            q.driver_event = <EventSuppress *>self.at(avail, sizeof(EventSuppress))
            q.device_event = <EventSuppress *>self.at(used, sizeof(EventSuppress))
        else:
            q.desc = <Desc *>self.at(desc, size * sizeof(Desc))
            q.avail = <uint16_t *>self.at(avail, 6 + 2 * size)
            q.used = <uint16_t *>self.at(used, 6 + 8 * size)
        for i in range(depth):
            q.free[i] = depth - 1 - i
            q.slots[i].frame = <Frame *>self.at(frames + i * frame_stride, sizeof(Frame))
            q.slots[i].data = self.at(data + i * data_stride, data_stride)
            q.slots[i].table = self.at(tables + i * table_stride, table_stride)
            q.slots[i].table_address = self.guest_address + tables + i * table_stride
        hush(q)

    def prepare(self, kind: str, *, bint mixed, bint random, bint once, bint fill, bint check,
                bint any_generation, double read_share, uint32_t block_bytes,
                uint32_t segment_bytes, uint64_t blocks, uint64_t limit, uint64_t most_passes,
                double seconds, double stall, double rate, uint64_t seed, uint64_t generation,
                uint64_t turn) -> None:
        """Say what the next `run` does, and clear the figures; nothing is in flight.

        `seconds`, `limit`, `most_passes` and `rate` (requests a second) of 0 mean none.
        """
        cdef Work *w = &self.load.work
        cdef Clock *clock = &self.load.clock
        if self.load.in_flight:
            raise ValueError(f"{self.load.in_flight} requests of the last run are in flight")
        store_release_u32(&self.load.stop, GO_ON)
        memset(w, 0, sizeof(Work))
        w.kind = <Kind>KIND_NAMES.index(kind)
        w.mixed, w.random, w.once, w.fill, w.check = mixed, random, once, fill, check
        w.any_generation = any_generation
        w.read_share = <uint32_t>min(read_share * 2.0**32, 2.0**32 - 1)
        w.block_bytes, w.blocks, w.limit = block_bytes, blocks, limit
        w.most_passes = most_passes
        w.run_ticks = ticks_of(clock, <uint64_t>(seconds * 1e9))
        w.stall_ticks = ticks_of(clock, <uint64_t>(stall * 1e9))
        w.per_tick = rate / <double>ticks_of(clock, 1000000000)
        w.seed, w.generation, w.turn = seed, generation, turn
        self.load.shape.bytes = block_bytes if kind in ("read", "write") else 0
        self.load.shape.segment_bytes = segment_bytes
        self.load.shape.segments = (self.load.shape.bytes + segment_bytes - 1) // segment_bytes
        self.check_room(self.load.shape.segments + (3 if kind == "trim" else 2))
        lay_out(&self.load)
        self.clear()

    cdef int check_room(self, uint32_t parts) except -1:
        """Raise ValueError unless chains of so many parts fit wherever they are written."""
        if parts > MAX_PARTS:
            raise ValueError(f"{parts} descriptors a request, not up to {MAX_PARTS}")
        for i in range(self.load.count):
            q = &self.load.queues[i]
            if q.table_bytes < parts * sizeof(Desc):
                raise ValueError(f"tables of {q.table_bytes} bytes for {parts} descriptors")
            if not q.indirect and q.depth * parts > q.size:
                raise ValueError(f"{q.size} descriptors for {q.depth} requests of {parts}")
        return 0

    def clear(self) -> None:
        """Forget the figures of earlier runs."""
        memset(self.load.histograms, 0, KINDS * sizeof(Histogram))
        for i in range(KINDS):
            self.load.histograms[i].least = ~<uint64_t>0
        self.load.kicks = self.load.errors = self.load.intact = self.load.wrong_blocks = 0
        self.load.finding_count = 0
        self.load.sent = self.load.next_block = 0
        self.load.passes = 1
        memset(self.load.passings, 0, sizeof(self.load.passings))

    def run(self) -> str:
        """Do what was prepared, with the GIL released; empty, or why it could not go on.

        It ends with nothing in flight unless it could not go on or was to abandon it.
        """
        cdef int rc
        self.load.sending = True
        with nogil:
            rc = drive(&self.load)
        return WRONG_NAMES[rc] if rc else ""

    def stop(self, *, bint abandon=False) -> None:
        """Send nothing more; with `abandon`, do not wait for what is in flight either."""
        store_release_u32(&self.load.stop, ABANDON if abandon else DRAIN)

    @property
    def in_flight(self) -> int:
        """Requests that the back end has; a moment's view."""
        return self.load.in_flight

    @property
    def done(self) -> int:
        """Requests that came back; a moment's view."""
        return sum(self.load.histograms[i].count for i in range(KINDS))

    def figures(self) -> dict:
        """What the last run counted."""
        cdef Load *g = &self.load
        return {
            "seconds": ns_of(&g.clock, g.ended - g.began) / 1e9,
            "kicks": g.kicks,
            "errors": g.errors,
            "intact": g.intact,
            "wrong_blocks": g.wrong_blocks,
            "passes": g.passes,
            "place": g.next_block,
        }

    def latencies(self, kind: str) -> tuple:
        """Count, sum, least and most in ns, and [(lowest value, count)] of used buckets."""
        cdef Histogram *h = &self.load.histograms[KIND_NAMES.index(kind)]
        buckets = [
            (lowest_of(i), h.buckets[i]) for i in range(<uint32_t>BUCKETS) if h.buckets[i]
        ]
        return (h.count, h.sum, h.least if h.count else 0, h.most, buckets)

    def passings(self) -> list:
        """What `any_generation` has seen: (generation, first and last place, first's offset)."""
        return [
            (p.generation, p.first, p.last, p.first_offset)
            for p in self.load.passings if p.generation
        ]

    def findings(self) -> list:
        """The first requests that went wrong: (what, kind, offset, at, found, expected)."""
        found = [
            (WHAT_NAMES[f.what], KIND_NAMES[f.kind], f.offset, f.at, f.found, f.expected)
            for f in self.load.findings[:self.load.finding_count]
        ]
        return found
