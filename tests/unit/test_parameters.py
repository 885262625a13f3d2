# SPDX-License-Identifier: Apache-2.0
"""The device that an image becomes."""

import dataclasses

import pytest

from blkd.export.config import ExportConfig
from blkd.export.parameters import parameters
from blkd.image.null import NullImage


@pytest.mark.parametrize(("punches", "granularity"), [(True, 4096), (False, 0)])
def test_discard_is_offered_only_where_there_is_a_way_to_do_it(punches, granularity):
    image = NullImage("null:1M", read_only=False, logical_block_size=None)
    image.limits = dataclasses.replace(image.limits, punches=punches)
    found = parameters(ExportConfig(name="disk", image=image.path, socket="disk.sock"), image)
    assert found.discard_granularity == granularity
    assert found.zeroes_unmap == punches
