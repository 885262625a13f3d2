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


cdef inline void count_answer(
    BlkCounters *c, uint32_t type, uint64_t bytes, uint8_t status
) noexcept nogil:
    """Account one answered request of virtio-blk's `type` that moved `bytes` of data."""
    if type == BLK_T_IN:
        bump(&c.reads, 1)
        bump(&c.bytes_read, bytes)
    elif type == BLK_T_OUT:
        bump(&c.writes, 1)
        bump(&c.bytes_written, bytes)
    elif type == BLK_T_FLUSH:
        bump(&c.flushes, 1)
    elif type == BLK_T_DISCARD:
        bump(&c.discards, 1)
    elif type == BLK_T_WRITE_ZEROES:
        bump(&c.write_zeroes, 1)
    elif type == BLK_T_GET_ID:
        bump(&c.get_ids, 1)
    else:
        bump(&c.others, 1)
    if status != BLK_S_OK:
        bump(&c.errors, 1)
