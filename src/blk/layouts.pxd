# SPDX-License-Identifier: Apache-2.0
"""What virtio 1.3 lays down in shared memory of a block device's requests (5.2.6)."""

from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    BLK_T_IN = 0
    BLK_T_OUT = 1
    BLK_T_FLUSH = 4
    BLK_T_GET_ID = 8
    BLK_T_DISCARD = 11
    BLK_T_WRITE_ZEROES = 13

    BLK_S_OK = 0
    BLK_S_IOERR = 1
    BLK_S_UNSUPP = 2

    RANGE_F_UNMAP = 1
    SECTOR_SHIFT = 9
    ID_BYTES = 20


cdef struct BlkHeader:
    uint32_t type
    uint32_t reserved
    uint64_t sector


cdef struct BlkRange:           # struct virtio_blk_discard_write_zeroes
    uint64_t sector
    uint32_t sectors
    uint32_t flags
