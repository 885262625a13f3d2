# SPDX-License-Identifier: Apache-2.0
"""What a guest was answered, counted for each vring; the control thread reads it."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from blk.layouts cimport (
    BLK_S_OK, BLK_T_DISCARD, BLK_T_FLUSH, BLK_T_GET_ID, BLK_T_IN, BLK_T_OUT, BLK_T_WRITE_ZEROES,
)
from worker.vring cimport bump


cdef struct BlkCounters:
    uint64_t reads              # requests answered, by type, whatever their status
    uint64_t writes
    uint64_t flushes
    uint64_t discards
    uint64_t write_zeroes
    uint64_t get_ids
    uint64_t others
    uint64_t bytes_read
    uint64_t bytes_written
    uint64_t errors             # answered with a status other than OK


cdef inline void count_answers(
    BlkCounters *c, uint32_t type, uint64_t bytes, uint8_t status, uint64_t n
) noexcept nogil:
    """Account `n` answered requests of virtio-blk's `type` that moved `bytes` of data each."""
    if type == BLK_T_IN:
        bump(&c.reads, n)
        bump(&c.bytes_read, n * bytes)
    elif type == BLK_T_OUT:
        bump(&c.writes, n)
        bump(&c.bytes_written, n * bytes)
    elif type == BLK_T_FLUSH:
        bump(&c.flushes, n)
    elif type == BLK_T_DISCARD:
        bump(&c.discards, n)
    elif type == BLK_T_WRITE_ZEROES:
        bump(&c.write_zeroes, n)
    elif type == BLK_T_GET_ID:
        bump(&c.get_ids, n)
    else:
        bump(&c.others, n)
    if status != BLK_S_OK:
        bump(&c.errors, n)
