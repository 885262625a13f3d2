# SPDX-License-Identifier: Apache-2.0
"""What went through a vring of a network device; the control thread reads it."""

from libc.stdint cimport uint64_t


cdef struct NetCounters:
    uint64_t packets            # taken from the guest and written, or read and given to it
    uint64_t bytes              # of these, headers of virtio aside
    uint64_t malformed          # from the guest, with a header that cannot be right
    uint64_t refused            # from the guest, not taken by the TAP
    uint64_t oversized          # for the guest, longer than its buffers or than any packet
    uint64_t copied             # for the guest, by way of a buffer of ours
    uint64_t commands           # of a control queue
