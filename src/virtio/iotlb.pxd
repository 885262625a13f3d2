# SPDX-License-Identifier: Apache-2.0
"""A device IOTLB: what is known of the I/O virtual addresses (IOVAs) of a guest behind an IOMMU.

It plays GuestMemory for the walks of chains: its regions are ranges of IOVAs.  They are the nodes
of a treap, since an IOMMU may answer page by page and in any order: ranges that continue each other
are one.  When it has no room for another it forgets all: what is needed again is asked for again.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from virtio.guestmem cimport GuestMemory, Region, guest_address


cdef enum:
    ACCESS_READ = 1             # as in IOTLB messages
    ACCESS_WRITE = 2
    ACCESS_BOTH = 3

    IOVA_PAGE = 4096            # bytes: no IOMMU has smaller pages
    MOST_REMOVED = 256          # ranges that one invalidation takes note of
    MOST_FOUND = 256            # pages that one walk for what is missing finds
    FIRST_RANDOM = 2463534242   # of xorshift: anything but 0
    NOWHERE = 0                 # the node that no tree has, and that no address is in


cdef enum Walk:
    WALK_WHOLE                  # to begin with a chain: up to what is missing
    WALK_FOR_MISSING            # to know all that is missing
    WALK_FOR_LAST_BYTES         # to fail: the last byte of each buffer, NULL where it is missing


cdef struct Node:
    uint32_t left               # by number; of a free one the next that is free
    uint32_t right
    uint32_t priority           # higher than those of the nodes below it
    uint32_t access


cdef struct Missing:
    # What a chain, or a vring, waits for.
    uint64_t iova               # of a page
    uint32_t access             # that is needed
    bint is_asked               # the control thread has it
    bint is_known               # a translation has come since
    bint is_denied              # there is none
    bint is_old                 # it was missing when patience was lost the last time
    bint is_last                # what it is needed for is to fail, and needs no more than this


cdef struct Iotlb:
    # The worker's alone once it has been given it.  What is mapped where, behind an IOVA, is memory
    # of the worker's present map.
    GuestMemory memory          # the first member: `is_iotlb`; a region a node, in no order
    Region *ranges              # those regions
    Node *nodes
    uint32_t capacity           # nodes, that of NOWHERE included
    uint32_t root
    uint32_t free               # the first of those that were given back
    uint32_t random
    Walk walk                   # how chains are walked now
    Missing missing             # what the last walk lacked
    Missing found[MOST_FOUND]   # ... each page, by a walk for what is missing
    uint32_t found_count
    bint has_unasked            # something is missing that was not asked for
    bint has_dropped            # something was forgotten that requests in flight may use, unnoted
    uint8_t *table              # room for an indirect table that lies in pieces
    # The invalidation under way: it waits for requests that use what was mapped there.
    uint64_t ticket             # to be answered, or 0
    uint64_t vrings             # by the worker's numbers, a bit each: that lay there
    Region removed[MOST_REMOVED]    # where it was mapped
    uint32_t removed_count      # MOST_REMOVED + 1: more than there is room for


cdef inline Iotlb *iotlb_of(const GuestMemory *memory) noexcept nogil:
    """The IOTLB that plays this memory, or NULL where it is a guest's own."""
    return <Iotlb *>memory if memory.is_iotlb else NULL


cdef inline void forget_all(Iotlb *t) noexcept nogil:
    """Know no translation."""
    t.root = t.free = NOWHERE
    t.memory.count = 1


cdef inline size_t iotlb_bytes(uint32_t capacity, uint32_t table) noexcept nogil:
    """How much memory an Iotlb takes, with room for a table of so many bytes."""
    return sizeof(Iotlb) + capacity * (sizeof(Region) + sizeof(Node)) + table


cdef inline Iotlb *lay_out_iotlb(void *at, uint32_t capacity) noexcept nogil:
    """Make an Iotlb that knows nothing of zeroed memory, as much as `iotlb_bytes` says."""
    cdef Iotlb *t = <Iotlb *>at
    t.ranges = <Region *>(t + 1)
    t.nodes = <Node *>(t.ranges + capacity)
    t.table = <uint8_t *>(t.nodes + capacity)
    t.memory.regions, t.memory.is_iotlb = t.ranges, True
    t.capacity, t.random = capacity, FIRST_RANDOM
    forget_all(t)
    return t


cdef inline void drop_all(Iotlb *t) noexcept nogil:
    """Know no translation, without a note of where each was."""
    if t.root:
        t.has_dropped = True
    forget_all(t)


cdef inline uint32_t node_before(const Iotlb *t, uint64_t address) noexcept nogil:
    """The last node that begins at `address` or before, or NOWHERE."""
    cdef uint32_t found = NOWHERE, at = t.root
    while at:
        if t.ranges[at].guest_address <= address:
            found, at = at, t.nodes[at].right
        else:
            at = t.nodes[at].left
    return found


cdef inline uint32_t next_random(Iotlb *t) noexcept nogil:
    """A priority: the trees stay flat whatever ranges come (xorshift)."""
    t.random ^= t.random << 13
    t.random ^= t.random >> 17
    t.random ^= t.random << 5
    return t.random


cdef inline uint32_t take_node(Iotlb *t, const Region *range, uint32_t access) noexcept nogil:
    """A node of its own for a range, or NOWHERE if there is none left."""
    cdef uint32_t node = t.free
    if node:
        t.free = t.nodes[node].left
    elif t.memory.count < t.capacity:
        node = t.memory.count
        t.memory.count += 1
    else:
        return NOWHERE
    t.ranges[node] = range[0]
    t.nodes[node].left = t.nodes[node].right = NOWHERE
    t.nodes[node].priority, t.nodes[node].access = next_random(t), access
    return node


cdef inline void free_node(Iotlb *t, uint32_t node) noexcept nogil:
    t.ranges[node].size = 0     # whoever looks there first finds nothing
    t.nodes[node].left, t.free = t.free, node


cdef inline void part(
    Iotlb *t, uint32_t node, uint64_t address, uint32_t *before, uint32_t *rest
) noexcept nogil:
    """Part a tree: what begins before `address`, and the rest."""
    while node:
        if t.ranges[node].guest_address < address:
            before[0] = node
            before = &t.nodes[node].right
            node = before[0]
        else:
            rest[0] = node
            rest = &t.nodes[node].left
            node = rest[0]
    before[0] = rest[0] = NOWHERE


cdef inline uint32_t join(Iotlb *t, uint32_t before, uint32_t rest) noexcept nogil:
    """One tree of two, of which all of `before` begins before all of the `rest`."""
    cdef uint32_t root = NOWHERE
    cdef uint32_t *at = &root
    while before and rest:
        if t.nodes[before].priority > t.nodes[rest].priority:
            at[0] = before
            at = &t.nodes[before].right
            before = at[0]
        else:
            at[0] = rest
            at = &t.nodes[rest].left
            rest = at[0]
    at[0] = before or rest
    return root


cdef inline void add_node(Iotlb *t, uint32_t node) noexcept nogil:
    """Put a node into the tree, in which nothing has a part of its range."""
    cdef uint32_t before, rest
    part(t, t.root, t.ranges[node].guest_address, &before, &rest)
    t.root = join(t, join(t, before, node), rest)


cdef inline void note_removed(Iotlb *t, const Region *range) noexcept nogil:
    """Take note of where a range was mapped that is removed."""
    if t.removed_count < MOST_REMOVED:
        t.removed[t.removed_count] = range[0]
    if t.removed_count <= MOST_REMOVED:
        t.removed_count += 1


cdef inline void free_tree(Iotlb *t, uint32_t node, bint is_noted) noexcept nogil:
    """Give back all nodes of a tree, which loses its left branches one after the other."""
    cdef uint32_t left
    while node:
        left = t.nodes[node].left
        if left:
            t.nodes[node].left = t.nodes[left].right
            t.nodes[left].right = node
            node = left
            continue
        if is_noted:
            note_removed(t, &t.ranges[node])
        left, node = node, t.nodes[node].right
        free_node(t, left)


cdef inline bint cut(Iotlb *t, uint64_t address) noexcept nogil:
    """Have no node reach across `address`: whether there was a node left for the second half."""
    cdef uint32_t node = node_before(t, address)
    cdef uint64_t within = address - t.ranges[node].guest_address
    cdef Region rest = t.ranges[node]
    if within == 0 or within >= rest.size:
        return True
    rest.guest_address, rest.base, rest.size = address, rest.base + within, rest.size - within
    t.ranges[node].size = within
    node = take_node(t, &rest, t.nodes[node].access)
    if node:
        add_node(t, node)
    return node != NOWHERE


cdef inline void forget(Iotlb *t, uint64_t first, uint64_t last, bint is_noted) noexcept nogil:
    """Know no translation of the addresses from `first` to `last`; it is noted what there was.

    Where there is no room to know the rest without them, all are forgotten.
    """
    cdef uint32_t before, within, rest = NOWHERE
    if not (cut(t, first) and (last + 1 == 0 or cut(t, last + 1))):
        drop_all(t)
        return
    part(t, t.root, first, &before, &within)
    if last + 1:
        part(t, within, last + 1, &within, &rest)
    t.root = join(t, before, rest)
    if within and not is_noted:
        t.has_dropped = True
    free_tree(t, within, is_noted)


cdef inline bint continues(
    const Iotlb *t, const GuestMemory *guest, uint32_t node, const Region *range, uint32_t access
) noexcept nogil:
    """Whether `range` goes on where a node ends, there and in guest memory, with the same access.

    What is one piece as it is mapped here may be two of the guest's, whose dirty log knows both.
    """
    cdef const Region *before = &t.ranges[node]
    cdef uint64_t at = 0, here = 0
    return (
        node != NOWHERE and t.nodes[node].access == access
        and before.guest_address + before.size == range.guest_address
        and before.base + before.size == range.base
        and guest_address(guest, before.base, &at) and guest_address(guest, range.base, &here)
        and at + before.size == here
    )


cdef inline void take_out(Iotlb *t, uint32_t node) noexcept nogil:
    """Take a node out of the tree and give it back."""
    cdef uint32_t *at = &t.root
    while at[0] != node:
        if t.ranges[node].guest_address < t.ranges[at[0]].guest_address:
            at = &t.nodes[at[0]].left
        else:
            at = &t.nodes[at[0]].right
    at[0] = join(t, t.nodes[node].left, t.nodes[node].right)
    free_node(t, node)


cdef inline bint is_known(const Iotlb *t, const Region *range, uint32_t access) noexcept nogil:
    """Whether just that is known of a range."""
    cdef uint32_t node = node_before(t, range.guest_address)
    cdef uint64_t within = range.guest_address - t.ranges[node].guest_address
    return (
        node != NOWHERE and t.nodes[node].access == access and within < t.ranges[node].size
        and range.size <= t.ranges[node].size - within
        and t.ranges[node].base + within == range.base
    )


cdef inline void learn(
    Iotlb *t, const GuestMemory *guest, const Region *range, uint32_t access
) noexcept nogil:
    """Translate by a range, which `guest` memory has in one piece, whatever was known of it."""
    cdef uint64_t end = range.guest_address + range.size
    cdef uint32_t node, after
    if is_known(t, range, access):
        return
    forget(t, range.guest_address, end - 1, False)
    node = node_before(t, range.guest_address)
    if continues(t, guest, node, range, access):
        t.ranges[node].size += range.size
    else:
        node = take_node(t, range, access)
        if node == NOWHERE:
            drop_all(t)
            node = take_node(t, range, access)
        add_node(t, node)
    after = node_before(t, end)
    if end and after != node and continues(t, guest, node, &t.ranges[after], t.nodes[after].access):
        t.ranges[node].size += t.ranges[after].size
        take_out(t, after)


cdef inline void note_missing(Iotlb *t, uint64_t address, uint32_t access) noexcept nogil:
    """Note what a walk lacks; one for what is missing has each page once, where they follow."""
    cdef Missing *found = &t.found[t.found_count]
    memset(&t.missing, 0, sizeof(Missing))
    t.missing.iova, t.missing.access = address & ~<uint64_t>(IOVA_PAGE - 1), access
    if t.walk != WALK_FOR_MISSING or t.found_count == MOST_FOUND:
        return
    if t.found_count and (found - 1).iova == t.missing.iova and (found - 1).access == access:
        return
    found[0] = t.missing
    t.found_count += 1


cdef inline uint8_t *translate_iova(
    Iotlb *t, uint64_t address, uint64_t *length, uint32_t access, uint32_t *near
) noexcept nogil:
    """Where an IOVA is mapped, or NULL where that is not known, or not for such `access`.

    Cuts `length` at the end of what is known; what is missing is noted.  `near` becomes the number
    of the node where all access is allowed: whoever looks there first asks for none.
    """
    cdef uint32_t node = node_before(t, address)
    cdef uint64_t within = address - t.ranges[node].guest_address
    if node == NOWHERE or within >= t.ranges[node].size or access & ~t.nodes[node].access:
        note_missing(t, address, access)
        return NULL
    if length[0] > t.ranges[node].size - within:
        length[0] = t.ranges[node].size - within
    near[0] = node if t.nodes[node].access == ACCESS_BOTH else <uint32_t>NOWHERE
    return t.ranges[node].base + within
