# SPDX-License-Identifier: Apache-2.0
"""One load: the work of a stretch, and what its polling thread keeps account of."""

from libc.stdint cimport uint32_t, uint64_t

from loadgen.clock cimport Clock
from loadgen.histogram cimport Histogram
from loadgen.queue cimport Queue
from loadgen.slots cimport Kind, Shape

cdef enum:
    MAX_FINDINGS = 16           # that are kept word for word
    BAD_STATUS = 100            # beside the values of `What`
    BAD_LENGTH = 101


cdef struct Finding:            # what was wrong with one request
    int what                    # a What, BAD_STATUS or BAD_LENGTH
    Kind kind
    uint64_t offset             # bytes on the disk, of the request
    uint32_t at                 # bytes from there
    uint64_t found
    uint64_t expected


cdef struct Work:               # of one stretch: written before it, only read in it
    Kind kind
    bint mixed                  # reads and writes
    bint random
    bint once                   # each block once a pass, as the checks need it
    bint fill                   # writes carry blocks that describe themselves
    bint check                  # reads are judged
    bint any_generation         # and any block of this seed is good
    uint32_t read_share         # of mixed requests, of 2^32
    uint32_t block_bytes
    uint64_t blocks
    uint64_t limit              # requests, or 0
    uint64_t most_passes        # of those that `once` makes, or 0
    uint64_t run_ticks          # or 0
    uint64_t stall_ticks
    double per_tick             # requests, or 0 for no limit
    uint64_t seed
    uint64_t generation         # that blocks up to `turn` have; those from it on, one less
    uint64_t turn


cdef struct Passing:            # of the blocks that one pass over the disk left
    uint64_t generation         # 0: none seen
    uint64_t first              # lowest and highest sequence
    uint64_t last
    uint64_t first_offset


cdef struct Load:
    # Written by the polling thread while it runs, except `stop`; read by anybody.
    Queue *queues
    uint32_t count
    uint32_t stop               # a Stop; written by the control thread
    Clock clock
    Work work
    Shape shape
    Histogram *histograms       # KINDS of them
    uint64_t now                # ticks at the last look
    uint64_t began
    uint64_t ended
    uint64_t last_progress      # ticks when something last came back, or could not
    uint64_t random
    uint64_t sent               # requests
    uint64_t in_flight
    uint64_t next_block         # of a sequence, or the place in a pass
    uint64_t passes             # over all blocks, the present one included
    uint64_t kicks
    uint64_t errors
    uint64_t intact             # blocks that were judged good
    uint64_t wrong_blocks
    Passing passings[2]         # by the parity of their generation
    Finding findings[MAX_FINDINGS]
    uint32_t finding_count
    bint sending                # more requests are wanted
