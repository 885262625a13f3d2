# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a ring that is served no more: noted where it is found, for the log.

The numbers are those of `blkd/virtio/flaws.py`, which has a sentence for each; a test compares.
The control thread reads a ring's flaw once the worker has reported the ring broken.
"""

from libc.stdint cimport uint64_t


cdef enum FlawKind:
    FLAW_NONE
    # Of what the driver made available.
    FLAW_AVAIL_INDEX            # where: the index; value: how far ahead of what was fetched
    FLAW_HEAD                   # where: the avail ring's entry; value: the descriptor it names
    FLAW_NEXT                   # where: the descriptor; value: its next
    FLAW_TABLE_NEXT             # likewise, in an indirect table of `limit`
    FLAW_LOOP                   # limit: the most descriptors of a chain without a loop
    FLAW_TABLE_LOOP             # likewise, in an indirect table
    FLAW_INDIRECT_NEXT          # where: the descriptor, which has a next as well
    FLAW_TABLE_INDIRECT         # where: the descriptor of an indirect table
    FLAW_INDIRECT_NOT_ALONE     # where: which descriptor of its chain, from 0
    FLAW_INDIRECT_NOT_AGREED
    FLAW_TABLE_LENGTH           # value: bytes; limit: those of a descriptor
    FLAW_TABLE_LONG             # value: descriptors
    FLAW_TABLE_UNMAPPED         # where: guest address; value: bytes
    FLAW_BUFFER_UNMAPPED        # where: guest address; value: bytes
    FLAW_BUFFER_CUT             # likewise; limit: the guest address at which memory ends
    FLAW_BUFFERS                # the chain has too many
    # Of what an in-flight region says.
    FLAW_INFLIGHT_FULL          # limit: descriptors that it has room for
    FLAW_INFLIGHT_POSITION      # value: a used position
    FLAW_INFLIGHT_FREE_LIST     # where: the entry that is reached twice
    FLAW_INFLIGHT_CHAIN         # where: the entry that a chain begins with
    FLAW_INFLIGHT_COUNT         # value: descriptors in flight
    FLAW_POSITION_UNKNOWN       # of a packed ring that somebody else served before
    # Of what else a ring needs.
    FLAW_LOG                    # the dirty log has no bit for what the ring writes
    FLAW_KICK                   # value: the errno for which its kick eventfd cannot be polled
    FLAW_MEMORY                 # no memory region has the ring any more
    FLAW_DENIED                 # where: an IOVA's page; value: the access to it that was denied
    FLAW_OF_DEVICE = 64         # the device's own begin here


cdef extern from *:
    """
    #include <stdint.h>

    struct blkd_flaw {
        int kind;
        uint64_t where, value, limit;
    };

    /* Cold: no loop makes room in its registers for what happens once in a ring's life. */
    static __attribute__((cold, noinline, unused)) int blkd_found_flaw(
        struct blkd_flaw *flaw, int kind, uint64_t where, uint64_t value, uint64_t limit,
        int error
    ) {
        *flaw = (struct blkd_flaw){kind, where, value, limit};
        return -error;
    }
    """
    cdef struct Flaw "blkd_flaw":
        int kind                # a FlawKind, or one of the device's own
        uint64_t where          # what these three mean is said with each kind;
        uint64_t value          # `value` is what was found,
        uint64_t limit          # `limit` what it must not be beyond

    # Note what is wrong: -error.
    int found_flaw "blkd_found_flaw"(
        Flaw *flaw, int kind, uint64_t where, uint64_t value, uint64_t limit, int error
    ) noexcept nogil
