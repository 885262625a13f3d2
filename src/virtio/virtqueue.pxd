# SPDX-License-Identifier: Apache-2.0
"""A virtqueue of either layout: where the data path above asks for one or the other.

Chains are taken by `split.take_split` and `packed.take_packed`: a loop that takes many of them
is written once for each layout and has no branch here.
"""

from libc.stdint cimport uint16_t, uint32_t

from virtio.guestmem cimport GuestMemory
from virtio.packed cimport (
    packed_base, packed_has_more, publish_packed, rearm_packed, skip_packed, start_packed,
    suppress_packed, walk_skipped_packed,
)
from virtio.split cimport (
    publish_split, rearm_split, skip_split, split_base, split_has_more, start_split,
    suppress_split, walk_split,
)
from virtio.virtq cimport Chain, Position, Segment, UsedChain, Virtq


cdef inline int start(Virtq *vq, uint32_t base) noexcept nogil:
    """Begin at a position as SET_VRING_BASE gives it: 0, or -ERANGE if the ring has no such one."""
    if vq.packed:
        return start_packed(vq, base)
    start_split(vq, <uint16_t>base)
    return 0


cdef inline int begin(Virtq *vq, uint32_t base) noexcept nogil:
    """Be at a position without a look at the ring, which lies nowhere yet: 0, or as `start`."""
    if vq.packed:
        return start_packed(vq, base)
    vq.avail.index = vq.avail_seen = vq.used.index = <uint16_t>base
    return 0


cdef inline uint32_t vring_base(const Virtq *vq) noexcept nogil:
    """The position as GET_VRING_BASE gives it."""
    return packed_base(vq) if vq.packed else split_base(vq)


cdef inline bint has_more(const Virtq *vq) noexcept nogil:
    """Whether the driver has made more available than was fetched."""
    return packed_has_more(vq) if vq.packed else split_has_more(vq)


cdef inline int skip(Virtq *vq, Chain *chain) noexcept nogil:
    """Step behind the next available chain, of which nothing is resolved: 1, or -errno."""
    return skip_packed(vq, chain) if vq.packed else skip_split(vq, chain)


cdef inline int walk_skipped(
    Virtq *vq, const GuestMemory *memory, Position head, Segment *out, uint32_t room, Chain *chain
) noexcept nogil:
    """Resolve the chain that was skipped, from `head` on: 0, or -errno."""
    if vq.packed:
        return walk_skipped_packed(vq, memory, head, out, room, chain)
    return walk_split(vq, memory, out, room, chain)


cdef inline bint publish(Virtq *vq, const UsedChain *used, uint32_t count) noexcept nogil:
    """Show the driver `count` answered chains at once: whether it wants to be called."""
    if vq.packed:
        return publish_packed(vq, used, count)
    return publish_split(vq, used, count)


cdef inline void suppress(Virtq *vq) noexcept nogil:
    """Ask the driver for no kicks, for the ring is being polled."""
    if vq.packed:
        suppress_packed(vq)
    else:
        suppress_split(vq)


cdef inline bint rearm(Virtq *vq) noexcept nogil:
    """Ask for a kick at the next chain: whether there is one already, so fetch again."""
    return rearm_packed(vq) if vq.packed else rearm_split(vq)
