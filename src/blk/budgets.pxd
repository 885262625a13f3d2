# SPDX-License-Identifier: Apache-2.0
"""When a request may begin: its place in every rate that it counts in, and what that means in time.

A request takes a place by one atomic addition in each rate's position and needs no other worker's
consent: places are given in the order in which they are asked for.  It may begin once every line
has come to its place.  So where each vring asks for one place of reads and one of writes at a
time, all have the same share, however many requests they have.  No function here reads a clock.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from blk.limits_page cimport (
    BPS_READ, BPS_TOTAL, Budget, DIMENSIONS, IOPS_READ, IOPS_TOTAL, Line, LimitsPage, Share,
    UNITS_A_REQUEST,
)
from engine.engine cimport IO_FLUSH, IO_NONE, IO_READ, IO_WRITE, IoKind
from sys.atomics cimport fetch_add_u64, load_acquire_u64, load_relaxed_u64, replace_u64
from sys.clock cimport SECOND


cdef enum:
    TOLERANCE = 20000000        # nanoseconds by which a position may lag that nobody waits at
    LONGEST_WAIT = 31536000000000000    # nanoseconds: a year, so that no time of a start overflows
    MOST_LATE = 1000000000      # nanoseconds of lateness of ours that requests do not lose by
    MOST_AHEAD = 0x100000000000000  # units; a position that is so far ahead of a line is behind it
    PACES = 3 * DIMENSIONS      # numbers of rates: an average, a burst and a grant in each
    MOST_PACES = 12             # that one request has to keep: in two dimensions of each unit


cdef enum Direction:            # requests of one wait in one queue
    READS
    WRITES                      # and what else changes the disk
    DIRECTIONS
    UNLIMITED                   # of requests that move no data and change none


cdef struct Pace:
    # One rate as a worker knows it; a copy, so that nothing of it changes in between.
    Line line
    double each                 # nanoseconds a unit
    uint64_t lag                # units by which the position may be behind the line
    uint64_t *position          # shared
    uint32_t number             # from 0 to PACES
    bint counts_bytes
    Share *share                # of the group that grants it; NULL of the export's own


cdef struct Paces:
    # All that requests of one direction have to keep.
    Pace of[MOST_PACES]
    uint32_t count


cdef struct Cost:
    uint64_t requests           # units
    uint64_t bytes


cdef struct Places:
    # What one request has taken, by the numbers of rates.
    uint64_t at[PACES]
    uint32_t taken              # a bit each
    uint32_t granted            # a bit a dimension: it waits for what the group grants


# ---- lines ----

cdef inline bint read_line(const Line *shared, Line *out) noexcept nogil:
    """Copy a line that may just be written: whether the copy is whole."""
    cdef uint64_t check = load_acquire_u64(&shared.check)
    out.base = load_acquire_u64(&shared.base)
    out.since = load_acquire_u64(&shared.since)
    out.rate = load_acquire_u64(&shared.rate)
    out.check = check
    return check == out.base ^ out.since ^ out.rate


cdef inline void write_line(
    Line *shared, uint64_t base, uint64_t since, uint64_t rate
) noexcept nogil:
    """Draw a line anew."""
    shared.base, shared.since, shared.rate = base, since, rate
    shared.check = base ^ since ^ rate


cdef inline uint64_t line_at(const Line *line, uint64_t now) noexcept nogil:
    """The units that a line allows by `now`; whole seconds apart, so that nothing overflows."""
    cdef uint64_t past = now - line.since
    if <int64_t>past <= 0:
        return line.base
    return line.base + past // SECOND * line.rate + <uint64_t>(
        <double>(past % SECOND) * <double>line.rate / SECOND
    )


cdef inline void bend(Line *line, uint64_t rate, uint64_t now, uint64_t position) noexcept nogil:
    """Give a line another rate from now on; one that was none begins at the position."""
    cdef uint64_t base = line_at(line, now) if line.rate else position
    write_line(line, base, now, rate)


# ---- places ----

cdef inline bint is_behind(uint64_t position, uint64_t at) noexcept nogil:
    """Whether a position is behind a place."""
    return position - at >= <uint64_t>MOST_AHEAD


cdef inline uint64_t take_place(uint64_t *position, uint64_t units, uint64_t floor) noexcept nogil:
    """Take so many units, from `floor` on if nobody has come so far: the place of the first."""
    cdef uint64_t at = load_relaxed_u64(position)
    if is_behind(at, floor):
        replace_u64(position, at, floor)    # where that fails another one has done it
    return fetch_add_u64(position, units)


cdef inline uint64_t time_of(const Pace *p, uint64_t place, uint64_t now) noexcept nogil:
    """When a line comes to a place, in nanoseconds; `now` where it has."""
    cdef uint64_t ahead = place - line_at(&p.line, now)
    if ahead == 0 or ahead >= <uint64_t>MOST_AHEAD:
        return now
    return now + <uint64_t>min(<double>ahead * p.each, <double>LONGEST_WAIT) + 1


cdef inline Cost cost_of(uint64_t iops_size, IoKind kind, uint64_t length) noexcept nogil:
    """What a request weighs: what is no read or write moves no data, and counts once."""
    cdef Cost cost
    cost.requests, cost.bytes = UNITS_A_REQUEST, 0
    if kind == IO_READ or kind == IO_WRITE:
        cost.bytes = length
        if iops_size and length > iops_size:
            cost.requests = length * UNITS_A_REQUEST // iops_size
    return cost


cdef inline Direction direction_of(IoKind kind) noexcept nogil:
    """The queue that a request would wait in."""
    if kind == IO_READ:
        return READS
    return UNLIMITED if kind == IO_FLUSH or kind == IO_NONE else WRITES


cdef inline uint64_t place_request(
    const Paces *paces, const Cost *cost, uint64_t since, uint64_t now, Places *places
) noexcept nogil:
    """Give a request a place in each rate in which it has none: when it may begin.

    Not later than `now` if that is at once.  `places.taken` is 0 of a request that has none yet.
    What it waits for `since` is not lost to it, however late that is looked at.
    """
    cdef uint64_t start = now, when, units
    cdef uint64_t from_then = max(since, now - min(now, <uint64_t>MOST_LATE))
    cdef const Pace *p
    cdef uint32_t i, bit
    places.granted = 0
    for i in range(paces.count):
        p = &paces.of[i]
        bit = <uint32_t>1 << p.number
        units = cost.bytes if p.counts_bytes else cost.requests
        if units == 0:
            continue
        if not places.taken & bit:
            places.taken |= bit
            places.at[p.number] = take_place(
                p.position, units, line_at(&p.line, from_then) - p.lag
            )
            if p.share != NULL:
                fetch_add_u64(&p.share.used, units)
        when = time_of(p, places.at[p.number], now)
        if when > now and p.share != NULL:
            places.granted |= <uint32_t>1 << (p.number - 2 * DIMENSIONS)
        start = max(start, when)
    return start


cdef inline uint64_t start_of_places(
    const Paces *paces, const Places *places, uint64_t now
) noexcept nogil:
    """When a request may begin that has these places, in the rates that there are now."""
    cdef uint64_t start = now
    cdef uint32_t i, number
    for i in range(paces.count):
        number = paces.of[i].number
        if places.taken >> number & 1:
            start = max(start, time_of(&paces.of[i], places.at[number], now))
    return start


cdef inline void add_places(Places *to, const Places *later) noexcept nogil:
    """Have the places of a request besides, which took them after all others."""
    cdef uint32_t number
    for number in range(<uint32_t>PACES):
        if later.taken >> number & 1:
            to.at[number] = later.at[number]
    to.taken |= later.taken


# ---- the rates that are in force ----

cdef inline void take_line(const Line *shared, Line *known) noexcept nogil:
    """Know a line anew; where it is just being written, the old one until it is."""
    cdef Line copy
    if read_line(shared, &copy):
        known[0] = copy


cdef inline void take_lines(const LimitsPage *page, Line *known) noexcept nogil:
    """Know all lines of a page, by the numbers of rates."""
    cdef uint32_t i
    for i in range(<uint32_t>DIMENSIONS):
        take_line(&page.budgets[i].average, &known[i])
        take_line(&page.budgets[i].burst, &known[i + DIMENSIONS])
        take_line(&page.shares[i].granted, &known[i + 2 * DIMENSIONS])


cdef inline void add_pace(
    Paces *paces, const Line *line, uint64_t *position, uint64_t credit, Share *share,
    uint32_t number
) noexcept nogil:
    """Have requests keep one more rate, unless there is none."""
    cdef Pace *p = &paces.of[paces.count]
    if line.rate == 0:
        return
    p.line = line[0]
    p.each = SECOND / <double>line.rate
    p.lag = credit + <uint64_t>(<double>line.rate * TOLERANCE / SECOND)
    p.position, p.share, p.number = position, share, number
    p.counts_bytes = number % DIMENSIONS >= <uint32_t>BPS_TOTAL
    paces.count += 1


cdef inline void add_dimension(
    Paces *paces, LimitsPage *page, const Line *known, uint32_t d
) noexcept nogil:
    """Have requests keep all rates of dimension `d`."""
    cdef Budget *own = &page.budgets[d]
    cdef Share *share = &page.shares[d]
    cdef uint32_t burst = d + DIMENSIONS, grant = d + 2 * DIMENSIONS
    add_pace(paces, &known[d], &own.position, own.credit, NULL, d)
    add_pace(paces, &known[burst], &own.burst_position, 0, NULL, burst)
    add_pace(paces, &known[grant], &share.position, 0, share, grant)


cdef inline void lay_out_paces(
    Paces *paces, LimitsPage *page, const Line *known, Direction direction
) noexcept nogil:
    """Have requests of a direction keep the known lines that are for them."""
    paces.count = 0
    add_dimension(paces, page, known, <uint32_t>IOPS_TOTAL)
    add_dimension(paces, page, known, <uint32_t>IOPS_READ + <uint32_t>direction)
    add_dimension(paces, page, known, <uint32_t>BPS_TOTAL)
    add_dimension(paces, page, known, <uint32_t>BPS_READ + <uint32_t>direction)
