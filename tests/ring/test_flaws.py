# SPDX-License-Identifier: Apache-2.0
"""What the data path says of a ring that it serves no more."""

import re
import struct
from pathlib import Path

import pytest
from blkd.probes import Guest

from blkd.virtio.blk import FLAWS
from blkd.virtio.flaws import OF_DEVICE, Flaw, FlawKind

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL = 1 << 7
DESC, DRIVER, DEVICE, REGION, DATA = 0x1000, 0x2000, 0x3000, 0x5000, 0x10000
MEMORY = 0x6000
SIZE = 8
NOWHERE = 0x9000
FIRST_BASE = 0x80008000
SOURCES = Path(__file__).parents[2] / "src"


class Ring:
    """A ring of either layout in one region of guest memory, and buffers in another."""

    def __init__(self, *, packed, **options):
        self.low, self.data = bytearray(MEMORY), bytearray(MEMORY)
        places = {"desc": DESC, "avail": DRIVER, "used": DEVICE}
        self.guest = Guest(
            [(0, self.low), (DATA, self.data)], size=SIZE, packed=packed, **places, **options
        )
        self.guest.start(FIRST_BASE if packed else 0)

    def describe(self, *descriptors):
        """Make a chain of these descriptors, the ring's first ones, available in a split ring."""
        self.write(self.low, DESC, descriptors)
        self.make_available(1)

    def table(self, *descriptors):
        """Write an indirect table: its length in bytes."""
        self.write(self.data, 0, descriptors)
        return 16 * len(descriptors)

    def make_available(self, index, head=0):
        struct.pack_into("<HHH", self.low, DRIVER, 0, index, head)

    def write(self, where, at, descriptors):
        struct.pack_into("<" + "QIHH" * len(descriptors), where, at, *sum(descriptors, ()))

    def flaw(self):
        """Fetch the next chain, which is wrong: what is said of it."""
        with pytest.raises(OSError):  # noqa: PT011 - which one is said by the flaw
            self.guest.take()
        return Flaw(*self.guest.flaw()).describe(FLAWS)


@pytest.mark.parametrize(
    ("descriptors", "said"),
    [
        pytest.param(
            [(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 900)],
            "descriptor 1: next 900 is past the ring's 8",
            id="next-past-the-ring",
        ),
        pytest.param(
            [(DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0)],
            "the chain at descriptor 0 loops: it has more than the ring's 8",
            id="loop",
        ),
        pytest.param(
            [(NOWHERE, 4096, 0, 0)],
            "buffer at 0x9000 of 4096 bytes is in no memory region",
            id="buffer-nowhere",
        ),
        pytest.param(
            [(DATA + MEMORY - 100, 4096, 0, 0)],
            "buffer at 0x15f9c of 4096 bytes: there is no memory region at 0x16000",
            id="buffer-past-the-end",
        ),
        pytest.param(
            [(DATA, 32, NEXT, 1), (DATA, 32, INDIRECT | NEXT, 2)],
            "descriptor 1 is indirect and has a next",
            id="indirect-with-next",
        ),
        pytest.param(
            [(DATA, 24, INDIRECT, 0)],
            "indirect table at 0x10000 of 24 bytes: not one or more descriptors of 16",
            id="table-of-odd-size",
        ),
        pytest.param(
            [(DATA, 16 * 9, INDIRECT, 0)],
            "indirect table at 0x10000 of 9 descriptors: a chain has 8 at the most",
            id="table-too-long",
        ),
        pytest.param(
            [(DATA + MEMORY - 16, 32, INDIRECT, 0)],
            "indirect table at 0x15ff0 of 32 bytes is not in one memory region",
            id="table-torn",
        ),
    ],
)
def test_a_split_ring_says_what_was_wrong_where(descriptors, said):
    ring = Ring(packed=False)
    ring.describe(*descriptors)
    assert ring.flaw() == said


@pytest.mark.parametrize(
    ("table", "said"),
    [
        pytest.param(
            [(DATA, 16, NEXT, 1), (DATA, 16, INDIRECT, 0)],
            "descriptor 1 of an indirect table is indirect itself",
            id="nested",
        ),
        pytest.param([(DATA, 16, NEXT, 0)], "an indirect table of 1 descriptors loops", id="loop"),
        pytest.param(
            [(DATA, 16, NEXT, 7), (DATA, 16, 0, 0)],
            "descriptor 0 of an indirect table: next 7 is past the table's 2",
            id="next-past-the-table",
        ),
    ],
)
def test_of_an_indirect_table_it_says_the_same(table, said):
    ring = Ring(packed=False)
    ring.describe((DATA, ring.table(*table), INDIRECT, 0))
    assert ring.flaw() == said


def test_an_indirect_descriptor_that_was_not_agreed_on_is_said_to_be():
    ring = Ring(packed=False, indirect=False)
    ring.describe((DATA, 16, INDIRECT, 0))
    assert ring.flaw() == "an indirect descriptor, which features do not allow"


def test_an_avail_index_too_far_ahead_is_said():
    ring = Ring(packed=False)
    ring.make_available(500)
    assert ring.flaw() == "avail index 500 is 500 ahead of what was fetched, in a ring of 8"


def test_a_head_past_the_ring_is_said_with_its_avail_entry():
    ring = Ring(packed=False)
    ring.make_available(1, head=900)
    assert ring.flaw() == "avail entry 0: descriptor 900 is past the ring's 8"


@pytest.mark.parametrize(
    ("descriptors", "said"),
    [
        pytest.param(
            [(DATA, 16, 0, AVAIL | NEXT)] * SIZE,
            "the chain at descriptor 0 loops: it has more than the ring's 8",
            id="no-end",
        ),
        pytest.param(
            [(DATA, 16, 0, AVAIL | NEXT), (DATA, 16, 0, AVAIL | INDIRECT)],
            "descriptor 1 of a chain, from 0, is indirect and not the chain's only one",
            id="indirect-behind-others",
        ),
        pytest.param(
            [(DATA, 16, 0, AVAIL | INDIRECT | NEXT)],
            "descriptor 0 of a chain, from 0, is indirect and not the chain's only one",
            id="indirect-before-others",
        ),
        pytest.param(
            [(NOWHERE, 512, 0, AVAIL)],
            "buffer at 0x9000 of 512 bytes is in no memory region",
            id="buffer-nowhere",
        ),
    ],
)
def test_a_packed_ring_says_what_was_wrong_where(descriptors, said):
    ring = Ring(packed=True)
    ring.write(ring.low, DESC, descriptors)
    assert ring.flaw() == said


@pytest.mark.parametrize(
    ("descriptors", "said"),
    [
        pytest.param(
            [(DATA, 16, NEXT, 1), (DATA, 512, 0, 0)],
            "request: no status byte, for none of its 2 buffers is to be written",
            id="no-status",
        ),
        pytest.param(
            [(DATA, 8, NEXT, 1), (DATA, 1, WRITE, 0)],
            "request: fewer than 16 bytes to be read are no header",
            id="short-header",
        ),
        pytest.param(
            [(DATA, 16, NEXT, 1), (DATA, 1, WRITE | NEXT, 2), (DATA, 512, 0, 0)],
            "request: buffer 2 is to be read, behind one to be written",
            id="wrong-order",
        ),
    ],
)
def test_a_request_that_cannot_be_answered_is_said_in_the_words_of_its_device(descriptors, said):
    ring = Ring(packed=False)
    ring.describe(*descriptors)
    with pytest.raises(OSError):  # noqa: PT011 - which one is said by the flaw
        ring.guest.parse(0, capacity=1 << 20)
    assert Flaw(*ring.guest.flaw()).describe(FLAWS) == said


def recover_from(describe):
    """A packed ring recovers from a region that is `describe`d wrong: what is said of it."""
    ring = Ring(packed=True)
    region = bytearray(64 + 32 * SIZE)
    ring.guest.record_in(region, SIZE)
    ring.guest.recover(FIRST_BASE)
    describe(region)
    struct.pack_into("<QIHH", ring.low, DESC, DATA, 1, 0, 1 << 15 | AVAIL)  # it was used before
    with pytest.raises(OSError, match="Bad message"):
        ring.guest.recover(FIRST_BASE)
    return Flaw(*ring.guest.flaw()).describe(FLAWS)


@pytest.mark.parametrize(
    ("describe", "said"),
    [
        pytest.param(
            lambda region: struct.pack_into("<HH", region, 16, 77, 77),
            "in-flight region: used position 77 is past the ring's 8",
            id="position",
        ),
        pytest.param(
            lambda region: struct.pack_into("<H", region, 32 + 32 * 3 + 2, 0),
            "in-flight region: the free list comes twice to entry 0",
            id="free-list",
        ),
        pytest.param(
            lambda region: (
                struct.pack_into("<HH", region, 12, 1, 1),
                struct.pack_into("<BBHHH", region, 32, 1, 0, 1, 5, 1),
            ),
            "in-flight region: the chain at entry 0 does not end where it is said to",
            id="chain",
        ),
    ],
)
def test_a_damaged_in_flight_region_says_where(describe, said):
    assert recover_from(describe) == said


def numbers(source, prefix):
    """The names and numbers of an enum in a source that has one with this prefix."""
    names = re.findall(rf"^    {prefix}_(\w+)(?: = (\w+))?", source, re.MULTILINE)
    found, number = {}, -1
    for name, given in names:
        number = int(given) if given.isdigit() else OF_DEVICE if given else number + 1
        found[name] = number
    return found


def test_every_flaw_of_the_data_path_has_its_number_and_sentence():
    flaws = numbers((SOURCES / "virtio" / "flaw.pxd").read_text(), "FLAW")
    assert flaws.pop("OF_DEVICE") == OF_DEVICE
    assert flaws == {kind.name: kind for kind in FlawKind}
    of_blk = numbers((SOURCES / "blk" / "operation.pxd").read_text(), "BLK_FLAW")
    assert set(of_blk.values()) == set(FLAWS)
