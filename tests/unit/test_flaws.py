# SPDX-License-Identifier: Apache-2.0
import pytest

from blkd.virtio import blk, flaws
from blkd.virtio.flaws import Flaw, FlawKind


@pytest.mark.parametrize("kind", [*FlawKind, *blk.FLAWS])
def test_every_flaw_is_a_sentence_without_placeholders(kind):
    said = Flaw(kind, where=11, value=22, limit=33).describe(blk.FLAWS)
    assert said
    assert not set("{}\n") & set(said)


def test_a_device_has_no_flaw_by_a_number_of_the_rings():
    assert not set(flaws.SENTENCES) & set(blk.FLAWS)
    assert min(blk.FLAWS) == flaws.OF_DEVICE > max(flaws.SENTENCES)
