# SPDX-License-Identifier: Apache-2.0
"""What is known of where a vring lies whose addresses are IOVAs."""

import pytest

from blkd.dataplane.areas import PAGE, Areas
from blkd.vhost_user.iotlb import Access, IotlbEntry
from blkd.vhost_user.vring_setup import VringSetup
from blkd.vhost_user.wire import VirtioFeature

READ, BOTH = Access.READ, Access.READ | Access.WRITE
DESC, AVAIL, USED = 0x10000, 0x11000, 0x12800
HERE = 0x7F0000000000
FEATURES = int(VirtioFeature.ACCESS_PLATFORM)


def areas(*, packed=False, size=256):
    features = FEATURES | (VirtioFeature.RING_PACKED if packed else 0)
    return Areas(VringSetup(size, DESC, AVAIL, USED, 0, features))


def page(iova, user_address=None, access=BOTH, pages=1):
    where = HERE + iova if user_address is None else user_address
    return IotlbEntry(iova, pages * PAGE, where, access)


def test_at_first_each_page_of_each_area_is_missing():
    assert areas().missing == [
        (0x10000, READ),
        (0x11000, READ),
        (0x12000, BOTH),
        (0x13000, BOTH),
    ]
    assert areas(packed=True).missing[0] == (0x10000, BOTH)


def test_areas_are_known_once_every_page_is():
    known = areas()
    for iova in (0x12000, 0x10000, 0x13000, 0x11000):
        assert known.missing
        assert known.learn(page(iova))
    assert not known.missing
    desc, _, used = known.parts
    assert known.pieces(desc) == [(HERE + DESC, 256 * 16)]
    assert [size for _, size in known.pieces(used)] == [0x800, 6 + 8 * 256 - 0x800]


def test_what_may_only_be_read_is_no_place_for_a_used_ring():
    known = areas()
    known.learn(page(0x10000, access=READ, pages=4))
    assert known.missing == [(0x12000, BOTH), (0x13000, BOTH)]


def test_what_is_known_already_or_elsewhere_is_no_news():
    known = areas()
    assert known.learn(page(0x10000))
    assert not known.learn(page(0x10000))
    assert not known.learn(page(0x20000))
    assert known.learn(page(0x10000, HERE))


def test_the_later_translation_holds():
    known = areas()
    known.learn(page(0x10000, pages=4))
    known.learn(page(0x10000, HERE))
    assert known.pieces(known.parts[0]) == [(HERE, 256 * 16)]
    assert not known.missing


@pytest.mark.parametrize(
    ("iova", "size", "met"),
    [(0x10000, PAGE, True), (0x10FFF, 1, True), (0, 2**64, True), (0x14000, PAGE, False)],
)
def test_what_is_forgotten_is_missing_anew(iova, size, met):
    known = areas()
    known.learn(page(0x10000, pages=4))
    assert known.forget(iova, size) is met
    assert bool(known.missing) is met


def test_no_more_is_remembered_than_the_pages_of_the_areas():
    known = areas()
    known.learn(page(0, pages=1 << 20))
    for n in range(0, 1 << 16, 7):
        known.forget(n * PAGE + 5, 1)
    assert len(known._entries) <= 4
