# SPDX-License-Identifier: Apache-2.0
"""`blkd bench` against scripted back ends: obedient ones of many kinds, and hostile ones."""

import os
import struct
import time

import pytest

from blkd.errors import BenchError
from blkd.loadgen.phases import bench
from blkd.loadgen.workload import Rw, Workload
from harness.backend import AVAIL, DISABLE, FEATURES, PROTOCOL, USED, BackEnd
from harness.frontend import DISCARD, FLUSH, IN, OUT, Feature, Protocol, Request

SIZE_MAX, SEG_MAX, BLK_SIZE = 8, 12, 20  # offsets in the configuration space


@pytest.fixture
def backend(tmp_path):
    with BackEnd(tmp_path / "disk.sock") as backend:
        yield backend


def run(backend, **options):
    return bench(str(backend.path), Workload(**{"runtime": 0.2, "timeout": 5.0} | options))


rings = pytest.mark.parametrize(
    "ring",
    [
        pytest.param({"packed": packed, "event_idx": event_idx, "indirect": indirect}, id=name)
        for packed, event_idx, indirect, name in [
            (False, True, True, "split"),
            (False, False, True, "split-flags"),
            (False, True, False, "split-direct"),
            (True, True, True, "packed"),
            (True, False, True, "packed-flags"),
            (True, True, False, "packed-direct"),
        ]
    ],
)


@rings
def test_what_is_written_is_read_back_and_checked(backend, ring):
    result = run(backend, rw=Rw.RANDWRITE, verify=True, iodepth=5, queues=3, runtime=None, **ring)
    assert result.verified_blocks == result.ios == len(backend.disk) // 4096
    assert result.errors == result.wrong_blocks == 0
    assert backend.rings.keys() == {0, 1, 2}
    kinds = [kind for kind, _, _ in backend.seen]
    assert (kinds.count(OUT), kinds.count(IN), kinds.count(FLUSH)) == (256, 256, 1)


@rings
def test_the_back_end_is_never_asked_to_call(backend, ring):
    result = run(backend, iodepth=16, **ring)
    assert len(backend.seen) == result.ios > 100
    assert backend.rings[0].calls_wanted == 0


def test_the_back_end_is_not_asked_to_call_when_indices_wrap(tmp_path):
    requests = 70_000  # more than 16 bits count
    with BackEnd(tmp_path / "disk.sock", sectors=requests) as backend:
        result = run(backend, verify_only=True, bs=512, iodepth=64, packed=False)
        assert backend.rings[0].event_idx
    assert backend.rings[0].next_used == result.ios == requests
    assert backend.rings[0].calls_wanted == 0


@rings
def test_a_back_end_that_asks_for_no_kicks_gets_none(backend, ring):
    def poll(ring):
        """Serve by polling until all is done."""
        deadline = time.monotonic() + 10
        while len(backend.seen) < 256:
            ring.hush()
            for number, pieces in ring.take():
                ring.give(number, backend.carry_out(pieces))
            assert time.monotonic() < deadline

    backend.on_kick = poll
    result = run(backend, iodepth=4, verify_only=True, **ring)
    assert result.ios == 256
    assert result.kicks == backend.rings[0].kicks == 1  # before it had said so


@rings
def test_a_back_end_that_asks_for_kicks_gets_them(backend, ring):
    def answer_once_armed(ring):
        """Ask for the next kick first, so that what follows an answer must bring one."""
        taken = list(ring.take())
        assert not ring.rearm()
        for number, pieces in taken:
            ring.give(number, backend.carry_out(pieces))

    backend.on_kick = answer_once_armed
    result = run(backend, verify_only=True, **ring)
    assert result.ios == result.kicks == backend.rings[0].kicks == 256


@pytest.mark.parametrize(
    ("rw", "kinds"),
    [
        pytest.param(Rw.READ, {IN}, id="read"),
        pytest.param(Rw.WRITE, {OUT}, id="write"),
        pytest.param(Rw.RANDREAD, {IN}, id="randread"),
        pytest.param(Rw.RANDWRITE, {OUT}, id="randwrite"),
        pytest.param(Rw.RANDRW, {IN, OUT}, id="randrw"),
        pytest.param(Rw.TRIM, {DISCARD}, id="trim"),
        pytest.param(Rw.FLUSH, {FLUSH}, id="flush"),
    ],
)
def test_each_load_asks_for_what_it_says(backend, rw, kinds):
    result = run(backend, rw=rw, iodepth=2)
    assert {kind for kind, _, _ in backend.seen} == kinds
    assert result.ios == len(backend.seen)
    assert result.errors == 0
    places = [sector for _, sector, _ in backend.seen]
    in_order = [i % 256 * 8 for i in range(len(places))]
    if rw in {Rw.READ, Rw.WRITE}:
        assert places == in_order
    elif rw.random:
        assert places != in_order
        assert len(set(places)) > 50
    by_op = result.latency_ns_by_op
    assert (set(by_op) if by_op else None) == ({"read", "write"} if rw is Rw.RANDRW else None)


def test_the_shares_of_a_mixed_load_are_as_asked(backend):
    result = run(backend, rw=Rw.RANDRW, rwmix=80, iodepth=8, runtime=0.5)
    reads = sum(kind == IN for kind, _, _ in backend.seen)
    assert 0.7 < reads / result.ios < 0.9


def test_no_request_goes_beyond_the_size_that_was_given(backend):
    run(backend, rw=Rw.RANDWRITE, size=40_000, iodepth=4)
    assert max(sector for _, sector, _ in backend.seen) == 8 * 8  # 9 whole blocks


def test_the_rate_is_kept(backend):
    result = run(backend, rate=200, runtime=1.0)
    assert 190 <= result.ios <= 201


def test_the_same_seed_asks_for_the_same_places(tmp_path):
    places = []
    for seed in (1, 1, 2):
        path = tmp_path / f"{len(places)}.sock"
        with BackEnd(path) as backend:
            run(backend, seed=seed)
        places.append(backend.seen[:100])
    assert places[0] == places[1] != places[2]


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        pytest.param({}, {8192}, id="no-limit"),
        pytest.param({SIZE_MAX: struct.pack("<I", 0)}, {8192}, id="a-limit-of-0-is-none"),
        pytest.param({SIZE_MAX: struct.pack("<I", 3000)}, {2560, 512}, id="cut-at-sectors"),
    ],
)
def test_data_is_cut_as_the_back_end_asks(tmp_path, config, lengths):
    features = FEATURES | Feature.SIZE_MAX | Feature.SEG_MAX
    found = set()
    with BackEnd(tmp_path / "disk.sock", features=features, config=config) as backend:
        obey = backend.carry_out

        def carry_out(pieces):
            found.update(length for _, length, _ in pieces[1:-1])
            return obey(pieces)

        backend.carry_out = carry_out
        result = run(backend, rw=Rw.RANDRW, verify=True, bs=8192, runtime=None)
    assert result.wrong_blocks == result.errors == 0
    assert found == lengths


def test_memory_slots_are_used_where_they_are_offered(tmp_path):
    protocol = PROTOCOL | Protocol.CONFIGURE_MEM_SLOTS
    with BackEnd(tmp_path / "disk.sock", protocol=protocol) as backend:
        run(backend)
    assert Request.ADD_MEM_REG in backend.requests
    assert Request.SET_MEM_TABLE not in backend.requests


# What cannot be


@pytest.mark.parametrize(
    ("options", "offer", "reason"),
    [
        pytest.param({"packed": True}, {"features": Feature.RING_PACKED}, "PACKED", id="packed"),
        pytest.param({"event_idx": True}, {"features": Feature.EVENT_IDX}, "EVENT_IDX", id="event"),
        pytest.param(
            {"indirect": True}, {"features": Feature.INDIRECT_DESC}, "INDIRECT", id="indirect"
        ),
        pytest.param({"rw": Rw.FLUSH}, {"features": Feature.FLUSH}, "FLUSH", id="flush"),
        pytest.param({"rw": Rw.TRIM}, {"features": Feature.DISCARD}, "DISCARD", id="trim"),
        pytest.param({}, {"protocol": Protocol.CONFIG}, "configuration space", id="config"),
        pytest.param({"queues": 2}, {"protocol": Protocol.MQ}, "1 queues, not 2", id="queues"),
    ],
)
def test_what_is_not_offered_is_an_error(tmp_path, options, offer, reason):
    features = FEATURES & ~offer.get("features", 0)
    protocol = PROTOCOL & ~offer.get("protocol", 0)
    path = tmp_path / "disk.sock"
    backend = BackEnd(path, features=features, protocol=protocol)
    with backend, pytest.raises(BenchError, match=reason) as refused:
        run(backend, **options)
    assert refused.value.hint
    assert Request.SET_VRING_KICK not in backend.requests


@pytest.mark.parametrize(
    ("options", "made", "reason"),
    [
        pytest.param({"rw": Rw.WRITE}, {"read_only": True}, "read-only", id="read-only"),
        pytest.param({"size": 2 << 20}, {}, "less than 2097152", id="size"),
        pytest.param({"queues": 9}, {}, "4 queues, not 9", id="queues"),
        pytest.param(
            {"bs": 512}, {"config": {BLK_SIZE: struct.pack("<I", 4096)}}, "4096", id="blocks"
        ),
        pytest.param({"iodepth": 1000, "indirect": False}, {}, "need 3000", id="ring"),
        pytest.param({"bs": 4 << 20}, {}, "less than one block", id="one-block"),
    ],
)
def test_what_the_disk_cannot_do_is_an_error(tmp_path, options, made, reason):
    backend = BackEnd(tmp_path / "disk.sock", **made)
    with backend, pytest.raises(BenchError, match=reason):
        run(backend, **options)


def test_nobody_there_is_an_error(tmp_path):
    with pytest.raises(BenchError, match="no back end at"):
        bench(str(tmp_path / "nowhere"), Workload())


# Wrong answers


def test_a_failed_request_is_counted_and_reported(backend):
    backend.on_status = lambda kind, status: 1 if kind == IN else status
    result = run(backend, iodepth=4)
    assert result.errors == result.ios
    assert {(w.what, w.kind, w.found) for w in result.wrong} == {("bad-status", "read", "0x1")}


def test_a_status_that_nobody_wrote_is_an_error(backend):
    backend.on_status = lambda _kind, _status: 0xFF
    result = run(backend)
    assert result.errors == result.ios
    assert result.wrong[0].found == "0xff"


@pytest.mark.parametrize("written", [0, 1, 4096, 4098])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_wrong_used_length_is_an_error(backend, written, packed):
    obey = backend.carry_out
    backend.carry_out = lambda pieces: (obey(pieces), written)[1]
    result = run(backend, packed=packed)
    assert result.errors == result.ios
    found = result.wrong[0]
    assert (found.what, int(found.found, 16), found.expected) == (
        "bad-length",
        written,
        "0x1001",
    )


def test_a_lost_write_is_found_where_it_was_lost(backend):
    obey = backend.carry_out

    def lose_one(pieces):
        before = bytes(backend.disk[81920 : 81920 + 4096])
        written = obey(pieces)
        if backend.seen[-1][:2] == (OUT, 160):
            backend.disk[81920 : 81920 + 4096] = before
        return written

    backend.carry_out = lose_one
    result = run(backend, rw=Rw.WRITE, verify=True, runtime=None)
    assert (result.verified_blocks, result.wrong_blocks) == (255, 1)
    assert [(w.what, w.offset) for w in result.wrong] == [("foreign", 81920)]


def test_an_old_block_is_found_when_it_should_have_been_written_again(backend):
    kept = {}
    obey = backend.carry_out

    def keep_the_first(pieces):
        written = obey(pieces)
        if backend.seen[-1][:2] == (OUT, 160):
            backend.disk[81920:86016] = kept.setdefault("block", bytes(backend.disk[81920:86016]))
        return written

    backend.carry_out = keep_the_first
    result = run(backend, rw=Rw.RANDWRITE, verify=True, runtime=1.0, bs=4096, size=262144)
    assert result.ios > 3 * 64
    assert [(w.what, w.offset, w.found) for w in result.wrong] == [("stale", 81920, "0x1")]


@pytest.fixture
def wild(backend):
    """Answers the first kick by what a test does to the ring, and then nothing any more."""

    def misbehave(how):
        def once(ring):
            backend.on_kick = lambda _ring: None
            how(ring)

        backend.on_kick = once
        return backend

    return misbehave


def use_twice(ring):
    """Answer one request two times; both answers are seen at once."""
    (number, _), *_ = ring.take()
    for place in (ring.next_used + 1, ring.next_used):
        if ring.packed:
            ring.backend.write(ring.desc + 16 * place + 8, struct.pack("<IH", 1, number))
            ring.put(ring.desc + 16 * place + 14, AVAIL | USED)
        else:
            ring.backend.write(ring.used + 4 + 8 * place, struct.pack("<II", number, 1))
    if not ring.packed:
        ring.put(ring.used + 2, ring.next_used + 2)


def jump_ahead(ring):
    ring.put(ring.used + 2, 1000)


@pytest.mark.parametrize(
    ("how", "packed", "reason"),
    [
        pytest.param(lambda ring: ring.give(4711, 1), False, "not given", id="wild-id"),
        pytest.param(lambda ring: ring.give(0xFFFFFFFF, 1), False, "not given", id="huge-id"),
        pytest.param(lambda ring: ring.give(4711, 1), True, "not given", id="packed-wild-id"),
        pytest.param(jump_ahead, False, "more requests than", id="wild-index"),
        pytest.param(use_twice, False, "not given", id="used-twice"),
        pytest.param(use_twice, True, "not given", id="packed-used-twice"),
    ],
)
def test_a_ring_that_cannot_be_trusted_ends_the_run(wild, how, packed, reason):
    with pytest.raises(BenchError, match=reason) as ended:
        run(wild(how), packed=packed, iodepth=2, runtime=60)
    assert ended.value.hint


def test_a_back_end_that_hangs_is_given_up(wild):
    with pytest.raises(BenchError, match=r"answered nothing for 0\.3 s: 7 requests in flight"):
        run(wild(lambda _ring: None), iodepth=7, timeout=0.3, runtime=60)


def test_a_back_end_that_goes_away_ends_the_run(wild):
    with pytest.raises(BenchError, match="closed the connection after"):
        run(wild(lambda ring: ring.backend.sock.shutdown(2)), runtime=60)


def test_a_broken_ring_that_is_reported_ends_the_run(wild):
    with pytest.raises(BenchError, match="ring 0 is broken"):
        run(wild(lambda ring: os.eventfd_write(ring.error, 1)), runtime=60)


def test_a_message_that_nobody_asked_for_ends_the_run(wild):
    with pytest.raises(BenchError, match="nobody asked"):
        run(wild(lambda ring: ring.backend.sock.sendall(bytes(12))), runtime=60)


def test_memory_cannot_be_taken_away_under_us(backend):
    refused = []
    answer = backend.answer

    def shrink(request, payload, fds):
        if request is Request.SET_MEM_TABLE:
            try:
                os.ftruncate(fds[0], 0)
            except PermissionError as error:
                refused.append(error)
        return answer(request, payload, fds)

    backend.answer = shrink
    assert run(backend).errors == 0
    assert refused


@pytest.mark.parametrize(
    "request_",
    [
        Request.SET_OWNER,
        Request.SET_FEATURES,
        Request.SET_MEM_TABLE,
        Request.SET_VRING_ADDR,
        Request.SET_VRING_KICK,
        Request.SET_VRING_ENABLE,
    ],
    ids=lambda request: request.name,
)
def test_a_refusal_is_reported_by_its_message(backend, request_):
    backend.on_request = lambda request, _: (
        (7).to_bytes(8, "little") if request is request_ else None
    )
    with pytest.raises(BenchError, match=f"refuses {request_.name} with 7"):
        run(backend)


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        pytest.param(Request.GET_FEATURES, b"", id="no-features"),
        pytest.param(Request.GET_CONFIG, bytes(4), id="short-config"),
        pytest.param(Request.GET_CONFIG, bytes(12), id="refused-config"),
        pytest.param(Request.GET_QUEUE_NUM, bytes(9), id="long-number"),
        pytest.param(Request.GET_CONFIG, bytes(8000), id="endless-config"),
    ],
)
def test_an_answer_of_the_wrong_form_is_reported(backend, request_, reply):
    backend.on_request = lambda request, _: reply if request is request_ else None
    with pytest.raises(BenchError, match=f"not an answer to {request_.name}"):
        run(backend)


def test_a_back_end_that_says_nothing_is_given_up(backend):
    def hold(request, _payload):
        if request is Request.GET_CONFIG:
            backend.sock.recv(1)  # until the front end has had enough
            raise ConnectionError

    backend.on_request = hold
    with pytest.raises(BenchError, match=r"no answer to GET_CONFIG within 0\.2 s"):
        run(backend, timeout=0.2)


def test_a_disk_without_a_block_is_an_error(tmp_path):
    backend = BackEnd(tmp_path / "disk.sock", sectors=1)
    with backend, pytest.raises(BenchError, match="less than one block"):
        run(backend)


def test_event_suppression_of_the_driver_is_set_before_the_ring_starts(backend):
    found = []
    answer = backend.answer

    def look(request, payload, fds):
        if request is Request.SET_VRING_KICK:
            found.append(backend.rings[0].u16(backend.rings[0].avail + 2))
        return answer(request, payload, fds)

    backend.answer = look
    run(backend, packed=True)
    assert found == [DISABLE]
