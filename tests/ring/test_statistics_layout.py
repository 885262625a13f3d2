# SPDX-License-Identifier: Apache-2.0
"""A worker's slot has one layout, for who writes it and for who reads it."""

from dataclasses import fields

from blkd.figures_probes import layout

from blkd.dataplane.workers import ring
from blkd.statistics import area_layout as at
from blkd.statistics.figures import BUCKETS, OPERATIONS, SIZE_CLASSES, Errors, Events


def test_layout_is_the_one_that_is_read():
    assert layout() == {
        "in flight": at.IN_FLIGHT,
        "oldest": at.OLDEST,
        "throttled": at.THROTTLED,
        "held": at.HELD,
        "busy": at.BUSY,
        "cpu": at.CPU,
        "errors": at.ERRORS,
        "events": at.EVENTS,
        "last error": at.ERRORS + len(fields(Errors)) - 1,
        "last event": at.EVENTS + len(fields(Events)) - 1,
        "counts": at.COUNTS,
        "bytes": at.BYTES,
        "cells": at.HEAD_BYTES,
        "cell": at.CELL_BYTES,
        "slot": at.SLOT_BYTES,
        "sums": at.SUMS,
        "ring": at.RING,
        "throttle": at.THROTTLE,
        "disk": at.DISK,
        "operations": len(OPERATIONS),
        "size classes": len(SIZE_CLASSES),
        "number of cells": at.CELLS,
        "buckets": BUCKETS,
    }


def test_worker_takes_slots_of_that_size():
    assert ring.SLOT_BYTES == at.SLOT_BYTES
