# SPDX-License-Identifier: Apache-2.0
"""A ring's record of what is in flight, of either layout: the driver's chains given back.

That a chain was fetched is noted by `record_split` and `record_packed`, in the loop that
fetches chains of that layout.
"""

from libc.stdint cimport uint32_t

from inflight.packed cimport link_packed, settle_packed, walk_recorded
from inflight.region cimport Again, Inflight
from inflight.split cimport link_split, settle_split
from virtio.guestmem cimport GuestMemory
from virtio.split cimport walk_split
from virtio.virtq cimport Chain, Segment, UsedChain, Virtq


cdef inline void link(
    Inflight *f, const Virtq *vq, const UsedChain *used, uint32_t count
) noexcept nogil:
    """Say which chains are about to be given back: before the driver sees any of them."""
    if vq.packed:
        link_packed(f, vq, used, count)
    else:
        link_split(f, used, count)


cdef inline void settle(
    Inflight *f, const Virtq *vq, const UsedChain *used, uint32_t count
) noexcept nogil:
    """Note that the driver has them back: after it can see that."""
    if vq.packed:
        settle_packed(f, vq, used, count)
    else:
        settle_split(f, vq, used, count)


cdef inline int walk_again(
    const Inflight *f, Virtq *vq, const GuestMemory *memory, const Again *again,
    Segment *out, uint32_t room, Chain *chain,
) noexcept nogil:
    """Resolve a chain that is carried out again into `out`: 0, or -errno."""
    chain.id, chain.descriptors = again.entry, again.descriptors
    if vq.packed:
        return walk_recorded(f, vq, memory, again.entry, out, room, chain)
    return walk_split(vq, memory, out, room, chain)
