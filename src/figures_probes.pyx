# SPDX-License-Identifier: Apache-2.0
"""Doors for tests into what workers count; no part of a release."""

from figures.slot cimport BUCKETS, CELLS, Cell, OPERATIONS, SIZE_CLASSES, Slot


def layout():
    """Where things lie in a slot, in words from its start or a cell's, and its constants."""
    cdef Slot *slot = NULL
    cdef Cell *cell = NULL
    return {
        "in flight": <size_t>&slot.in_flight // 8, "oldest": <size_t>&slot.oldest_at // 8,
        "throttled": <size_t>&slot.throttled // 8, "held": <size_t>&slot.held // 8,
        "busy": <size_t>&slot.busy_ns // 8, "cpu": <size_t>&slot.cpu_ns // 8,
        "errors": <size_t>&slot.errors // 8, "events": <size_t>&slot.events // 8,
        "last error": <size_t>&slot.errors.refused // 8,
        "last event": <size_t>&slot.events.sleeps_spared // 8,
        "counts": <size_t>slot.counts // 8, "bytes": <size_t>slot.bytes // 8,
        "cells": <size_t>slot.cells, "cell": sizeof(Cell), "slot": sizeof(Slot),
        "sums": <size_t>&cell.ring_ns // 8, "ring": <size_t>cell.ring // 8,
        "throttle": <size_t>cell.throttle // 8, "disk": <size_t>cell.disk // 8,
        "operations": OPERATIONS, "size classes": SIZE_CLASSES, "number of cells": CELLS,
        "buckets": BUCKETS,
    }
