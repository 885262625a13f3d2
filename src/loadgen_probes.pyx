# SPDX-License-Identifier: Apache-2.0
"""Doors for tests into the load generator's inline functions; no part of a release."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from loadgen.blocks cimport Block, check_block, fill_block, place_of
from loadgen.histogram cimport BUCKETS, Histogram, lowest_of, record
from loadgen.queue cimport crossed


def count_latencies(values):
    """What `Generator.latencies` tells of `values`, in ns."""
    cdef Histogram h
    memset(&h, 0, sizeof(h))
    h.least = ~<uint64_t>0
    for value in values:
        record(&h, value)
    buckets = [(lowest_of(i), h.buckets[i]) for i in range(BUCKETS) if h.buckets[i]]
    return (h.count, h.sum, h.least, h.most, buckets)


cdef Block block(uint64_t offset, uint64_t seed, uint64_t generation, uint64_t sequence):
    cdef Block b
    b.offset, b.seed, b.generation, b.sequence = offset, seed, generation, sequence
    return b


def make_block(size, *, offset, seed=1, generation=1, sequence=0):
    """A block of `size` bytes that describes itself."""
    cdef Block b = block(offset, seed, generation, sequence)
    data = bytearray(size)
    cdef uint8_t[::1] view = data
    fill_block(<uint64_t *>&view[0], size // sizeof(uint64_t), &b)
    return data


def judge_block(data, *, offset, seed=1, generation=1, sequence=0, any_generation=False):
    """What is the matter with a block: (a `What`, the byte, found, expected)."""
    cdef Block b = block(offset, seed, generation, sequence)
    cdef uint8_t[::1] view = data
    j = check_block(<uint64_t *>&view[0], len(data) // sizeof(uint64_t), &b, any_generation)
    return (j.what, j.at, j.found, j.expected)


def place(uint64_t sequence, uint64_t blocks, uint64_t seed):
    """Which block comes at a place of a pass in random order."""
    return place_of(sequence, blocks, seed)


def passed(event, now, before):
    """Whether `event` was crossed between two indices."""
    return bool(crossed(event, now, before))
