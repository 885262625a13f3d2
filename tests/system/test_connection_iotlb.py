# SPDX-License-Identifier: Apache-2.0
"""How a front end is asked for translations, and what becomes of its answers."""

import time

import pytest

from blkd.vhost_user.iotlb import Access
from blkd.vhost_user.misses import LARGEST_WAIT, WINDOW
from harness.frontend import CONFIG_CHANGE_MSG, Protocol, Request
from harness.iommu import BOTH, MESSAGE, OFFSET, PAGE, READ, WRITE, Iommu, Kind, Miss
from tests.served import Served

SOON = 0.2  # seconds within which nothing may come
PAGE_AT = OFFSET + (1 << 20)
"""The IOVA of the first page of guest memory."""


@pytest.fixture
def served():
    with Served() as served:
        Iommu(served.front_end)
        yield served


@pytest.fixture
def iommu(served):
    """Of a front end that has started a ring."""
    front_end = served.front_end
    front_end.negotiate()
    front_end.config(0, 60)
    front_end.share_memory()
    front_end.start_ring()
    return front_end.iommu


def denied(served):
    """The translations that the data path knows it will not get, so far."""
    served.front_end.call(Request.GET_FEATURES)
    return [call[1:] for call in served.data_path.calls if call[0] == "deny_iotlb"]


def wait_denied(served, count):
    deadline = time.monotonic() + 5
    while len(denied(served)) < count and time.monotonic() < deadline:
        pass
    return denied(served)


def test_rings_are_at_iovas_from_the_start(served, iommu):
    calls = served.data_path.calls
    assert ("translate_addresses", True) in calls
    (setup,) = (call[2] for call in calls if call[0] == "start_vring")
    assert setup.desc == iommu.iova(served.front_end.rings[0].desc)


@pytest.mark.parametrize("access", list(map(Access, (READ, WRITE, BOTH))))
def test_a_miss_is_asked_for_with_what_it_is_for(served, iommu, access):
    served.miss(PAGE_AT + 16, access)
    assert iommu.next_miss() == Miss(PAGE_AT + 16, access)


def test_a_translation_reaches_the_data_path_and_denies_nothing(served, iommu):
    served.miss(PAGE_AT, Access.READ)
    iommu.answer_next()
    updates = [call[1] for call in served.data_path.calls if call[0] == "update_iotlb"]
    assert [(entry.iova, entry.size, entry.access) for entry in updates] == [(PAGE_AT, PAGE, BOTH)]
    assert updates[0].user_address == served.front_end.memory.user_address(1 << 20)
    assert not denied(served)


def test_a_miss_that_is_answered_in_the_negative_is_denied(served, iommu):
    served.miss(12345, Access.WRITE)
    assert iommu.next_miss() == Miss(12345, WRITE)
    iommu.acknowledge(1)
    assert wait_denied(served, 1) == [(12345, Access.WRITE)]


def test_a_miss_that_is_answered_by_no_translation_is_denied(served, iommu):
    served.miss(PAGE_AT, Access.READ)
    iommu.next_miss()
    iommu.acknowledge(0)
    assert wait_denied(served, 1) == [(PAGE_AT, Access.READ)]


@pytest.mark.parametrize(
    ("missed", "iova", "access"),
    [
        pytest.param(PAGE_AT, PAGE_AT + PAGE, BOTH, id="of-the-next-page"),
        pytest.param(PAGE_AT + PAGE, PAGE_AT, BOTH, id="of-the-page-before"),
        pytest.param(PAGE_AT, PAGE_AT, READ, id="for-reading-only"),
    ],
)
def test_another_translation_than_that_asked_for_is_none(served, iommu, missed, iova, access):
    served.miss(missed, Access.WRITE)
    iommu.next_miss()
    assert iommu.update(iova, 1 << 20, access=access) == 0
    iommu.acknowledge(0)
    assert wait_denied(served, 1) == [(missed, Access.WRITE)]


def test_a_translation_that_is_still_to_be_read_denies_nothing(served, iommu):
    """Of a front end that waits for no answer on the main channel before it gives its own."""
    served.miss(PAGE_AT, Access.READ)
    iommu.next_miss()
    user_address = served.front_end.memory.user_address(1 << 20)
    update = MESSAGE.pack(PAGE_AT, PAGE, user_address, BOTH, Kind.UPDATE)
    with served.front_end.lock:
        for _ in range(50):
            served.front_end.send(Request.GET_FEATURES)
        served.front_end.send(Request.IOTLB_MSG, update)
        iommu.acknowledge(0)
        for _ in range(51):
            served.front_end.receive()
    assert not denied(served)


def test_a_miss_is_asked_for_once_while_it_is_unanswered(served, iommu):
    for _ in range(3):
        served.miss(PAGE_AT, Access.READ)
    served.miss(PAGE_AT, Access.WRITE)
    assert [iommu.answer_next().access for _ in range(2)] == [READ, WRITE]
    assert not iommu.is_asked(SOON)


def test_a_miss_that_comes_again_is_asked_for_again(served, iommu):
    for _ in range(3):
        served.miss(PAGE_AT, Access.READ)
        assert iommu.answer_next() == Miss(PAGE_AT, READ)


def test_a_miss_that_comes_again_before_its_answer_is_asked_for_again(served, iommu):
    """The translation has come, and was taken back before the miss was answered."""
    served.miss(PAGE_AT, Access.READ)
    iommu.next_miss()
    assert iommu.update(PAGE_AT, 1 << 20) == 0
    assert iommu.invalidate(PAGE_AT) == 0
    served.miss(PAGE_AT, Access.READ)
    assert iommu.next_miss() == Miss(PAGE_AT, READ)
    iommu.acknowledge(0)
    iommu.acknowledge(1)
    assert wait_denied(served, 1) == [(PAGE_AT, Access.READ)]


def test_a_miss_that_comes_while_it_is_denied_is_asked_for_again(served, iommu):
    """Whoever misses it then has not been told of the denial."""
    noted = []

    async def deny(iova, access):
        noted.append((iova, access))
        if len(noted) == 1:
            served.data_path.on_miss(iova, access)

    served.data_path.deny_iotlb = deny
    served.miss(PAGE_AT, Access.READ)
    for _ in range(2):
        assert iommu.next_miss() == Miss(PAGE_AT, READ)
        iommu.acknowledge(1)
    deadline = time.monotonic() + 5
    while len(noted) < 2 and time.monotonic() < deadline:
        served.front_end.call(Request.GET_FEATURES)
    assert noted == [(PAGE_AT, Access.READ)] * 2


def test_nobody_waits_for_a_miss(served, iommu):
    served.miss(PAGE_AT, Access.READ)
    iommu.next_miss()
    front_end = served.front_end
    assert iommu.invalidate(PAGE_AT) == 0
    assert front_end.stop_ring() == 0
    front_end.start_ring()
    iommu.acknowledge(1)
    assert not denied(served), "whoever missed is gone"


def test_only_so_many_misses_are_under_way(served, iommu):
    pages = [PAGE_AT + n * PAGE for n in range(WINDOW + 10)]
    for page in pages:
        served.miss(page, Access.READ)
    first = [iommu.next_miss() for _ in range(WINDOW)]
    assert not iommu.is_asked(SOON)
    for miss in first:
        iommu.answer(miss)
    rest = [iommu.answer_next() for _ in range(10)]
    assert [miss.iova for miss in first + rest] == pages


def test_what_a_translation_meets_is_not_asked_for_any_more(served, iommu):
    for n in range(WINDOW + 10):
        served.miss(PAGE_AT + n * PAGE, Access.READ)
    first = [iommu.next_miss() for _ in range(WINDOW)]
    assert iommu.update(PAGE_AT, 1 << 20, size=1 << 20) == 0
    for _ in first:
        iommu.acknowledge()
    assert not iommu.is_asked(SOON)
    assert not denied(served)


def test_misses_that_nobody_answers_take_no_more_memory_than_rings_can_wait_for(served, iommu):
    most = served.device.queues * LARGEST_WAIT
    for n in range(most + WINDOW + 100):
        served.miss(n * PAGE, Access.READ)
    for _ in range(WINDOW):
        iommu.next_miss()
        iommu.acknowledge(1)
    seen = [iommu.next_miss().iova // PAGE for _ in range(WINDOW)]
    assert seen == list(range(WINDOW + 100, 2 * WINDOW + 100))


def test_misses_wait_for_a_channel(served):
    front_end = served.front_end
    asking = Protocol.CONFIG | Protocol.BACKEND_REQ | Protocol.REPLY_ACK
    front_end.open_backend_channel = lambda: None
    front_end.negotiate(protocol_features=asking)
    del front_end.open_backend_channel
    front_end.share_memory()
    front_end.start_ring()
    served.miss(PAGE_AT, Access.READ)
    front_end.call(Request.GET_FEATURES)
    front_end.open_backend_channel()
    assert front_end.iommu.answer_next() == Miss(PAGE_AT, READ)


@pytest.mark.parametrize("how", ["replaced", "lost"])
def test_a_new_channel_is_asked_what_the_old_one_did_not_answer(served, iommu, how):
    for n in range(3):
        served.miss(PAGE_AT + n * PAGE, Access.READ)
    asked = [iommu.next_miss() for _ in range(3)]
    assert iommu.update(PAGE_AT, 1 << 20) == 0
    if how == "lost":
        served.front_end.backend_requests.close()
    served.front_end.open_backend_channel()
    again = {iommu.next_miss() for _ in range(2)}
    assert again == set(asked[1:])
    assert not denied(served)


def test_other_requests_of_ours_share_the_channel(served, iommu):
    served.miss(PAGE_AT, Access.READ)
    miss = iommu.next_miss()
    announced = served.announce(timeout=5)
    assert iommu.is_asked(5)
    iommu.answer(miss)
    assert served.front_end.answer_backend()[0] == CONFIG_CHANGE_MSG
    assert announced.result(5) is True
    assert not denied(served)


def test_a_message_of_26_bytes_is_taken_too(served, iommu):
    user_address = served.front_end.memory.user_address(1 << 20)
    assert iommu.say(Kind.UPDATE, PAGE_AT, PAGE, user_address, BOTH, short=True) == 0
    assert served.data_path.names()[-1] == "update_iotlb"


def test_misses_of_a_front_end_that_is_gone_are_gone(served, iommu):
    served.miss(PAGE_AT, Access.READ)
    iommu.next_miss()
    assert served.end() is None
    assert "deny_iotlb" not in served.data_path.names()
