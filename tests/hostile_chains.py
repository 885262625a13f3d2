# SPDX-License-Identifier: Apache-2.0
"""Chains that break a ring of either layout: each function puts one in a ring, without a kick."""

import struct

from harness.disk import IN
from harness.vring import DESC_INDIRECT, DESC_WRITE

HEADER = struct.pack("<IIQ", IN, 0, 0)


def outside_memory(ring):
    ring.publish(ring.add([(2**40, 16, 0)]))


def address_that_wraps(ring):
    ring.publish(ring.add([(2**64 - 8, 16, 0)]))


def no_status(ring):
    ring.publish(ring.add([(HEADER, 16, 0)]))


def no_header(ring):
    ring.publish(ring.add([(ring.memory.alloc(513), 513, DESC_WRITE)]))


def readable_after_writable(ring):
    ring.publish(ring.add([(HEADER, 16, 0), (bytes(512), 512, DESC_WRITE), (bytes(1), 1, 0)]))


def indirect_table_too_long(ring):
    ring.publish(ring.add([(ring.memory.alloc(16 * 300), 16 * 300, DESC_INDIRECT)]))


def indirect_table_torn(ring):
    ring.publish(ring.add([(ring.memory.alloc(32), 17, DESC_INDIRECT)]))


EITHER_LAYOUT = [
    outside_memory,
    address_that_wraps,
    no_status,
    no_header,
    readable_after_writable,
    indirect_table_too_long,
    indirect_table_torn,
]
