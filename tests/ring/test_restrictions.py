# SPDX-License-Identifier: Apache-2.0
"""An io_uring that does nothing but what it was made for."""

import errno

import pytest

from blkd import probes


@pytest.mark.parametrize(
    ("allows", "answer"),
    [pytest.param(True, errno.EBADF, id="allowed"), pytest.param(False, errno.EACCES, id="not")],
)
def test_a_ring_does_only_what_it_was_made_for(allows, answer):
    assert probes.try_restricted(allows) == (True, answer, errno.EACCES)
