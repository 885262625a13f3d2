# SPDX-License-Identifier: Apache-2.0
"""The rates of a disk in memory that outlives its process: what may be begun, and what was.

Everything is counted in units: bytes, or UNITS_A_REQUEST for one request, so that the part of a
request beyond a multiple of `iops-size` counts too.  A `Line` says how many units may have been
begun by a time.  A position is how many have been: who begins something adds its cost there and
begins once the line has come to where the position was before.  A change of rate bends the line
and leaves positions alone, so no earned credit is given away or made, whoever is served next.

`blkd/statistics/limits_page.py` has the same layout; a test compares.  Counts wrap; differences
are what matters.  Whoever reads a page of another process takes every value for hostile.
"""

from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    LIMITS_PAGE_BYTES = 8192
    LIMITS_LAYOUT = 1           # of the page; of another one nothing is used
    UNITS_A_REQUEST = 1 << 10


cdef enum Dimension:
    IOPS_TOTAL
    IOPS_READ
    IOPS_WRITE
    BPS_TOTAL
    BPS_READ
    BPS_WRITE
    DIMENSIONS


cdef struct Line:               # 32 bytes
    uint64_t base               # units that may have been begun ...
    uint64_t since              # ... at this time, nanoseconds of CLOCK_MONOTONIC
    uint64_t rate               # ... and so many more each second after; 0: there is no limit
    uint64_t check              # the exclusive or of the three: else it is being written


cdef struct Budget:             # 128 bytes; the export's own limit in one dimension
    Line average                # 0: control thread
    Line burst                  # 32: control thread; the rate that is allowed while credit lasts
    uint64_t position           # 64: workers, by atomic additions; of `average`
    uint64_t burst_position     # 72: likewise, of `burst`
    uint64_t credit             # 80: control thread: units by which `position` may lag for bursts
    uint64_t unused[5]


cdef struct Share:              # 128 bytes; what the export's group lets it have in one dimension
    Line granted                # 0: the supervisor, every few milliseconds; rate 0: no group
    uint64_t unused[4]
    uint64_t position           # 64: workers, by atomic additions
    uint64_t used               # 72: likewise: units begun under a grant since the page was made
    uint64_t waiting            # 80: likewise: queues whose first request waits for this grant
    uint64_t waits              # 88: likewise: requests that have had to, since the page was made
    uint64_t unused_too[4]


cdef struct LimitsPage:         # 1600 bytes of LIMITS_PAGE_BYTES
    uint32_t layout             # 0: LIMITS_LAYOUT; who made the page
    uint32_t waiting            # 4: workers: queues of vrings in which requests wait
    uint64_t iops_size          # 8: control thread: bytes that count as one request; 0 for any
    uint64_t grants             # 16: the supervisor: how often it has granted something
    uint64_t unused[5]
    Budget budgets[DIMENSIONS]  # 64
    Share shares[DIMENSIONS]    # 832
