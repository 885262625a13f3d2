# SPDX-License-Identifier: Apache-2.0
"""Where a ring goes on that somebody served before, and what is to be carried out again.

Nothing is written to a ring or its in-flight region before it is served for the first time:
until then it may be another process's.
"""

from libc.stdint cimport uint32_t

from inflight.packed cimport packed_region, recover_packed, renew_packed
from inflight.region cimport INFLIGHT_VERSION, Inflight, is_recorded
from inflight.split cimport recover_split
from virtio.flaw cimport FLAW_POSITION_UNKNOWN, found_flaw
from virtio.packed cimport FIRST_BASE, is_no_fresh_ring, is_untouched
from virtio.virtq cimport Virtq

cdef extern from "<errno.h>" nogil:
    enum:
        EBADMSG
        ESTALE


cdef inline int recover(
    Inflight *f, Virtq *vq, uint32_t base, bint taken_over
) noexcept nogil:
    """Find out what a ring, placed at `base`, has in flight: 0, or -errno if it cannot be served.

    -ESTALE: a packed ring that was served before, and nobody knows how far; who has it from
    another process knows.
    -EBADMSG: its in-flight region is damaged.
    """
    f.again_count = f.again_done = 0
    if is_recorded(f) and not vq.packed:
        recover_split(f, vq)
    elif is_recorded(f) and packed_region(f).version == INFLIGHT_VERSION and not (
        base == FIRST_BASE and is_untouched(vq)
    ):
        return -EBADMSG if recover_packed(f, vq) < 0 else 0
    elif vq.packed and base == FIRST_BASE and not taken_over and is_no_fresh_ring(vq):
        # Served from here it would do what was done before.
        return found_flaw(&vq.flaw, FLAW_POSITION_UNKNOWN, 0, 0, 0, ESTALE)
    elif is_recorded(f):
        renew_packed(f, vq)
    return 0
