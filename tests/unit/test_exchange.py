# SPDX-License-Identifier: Apache-2.0
"""A live upgrade's documents and the order in which they come, without processes."""

import asyncio
import contextlib
import json
import os
import socket
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.errors import DrainTimeout, ImageError, UpgradeError
from blkd.upgrade import exchange, framing, messages
from blkd.upgrade.descriptors import IncomingFds, OutgoingFds
from blkd.upgrade.transport import Transport
from harness.open_fds import open_fds, wait_for_fds

HELLO = messages.Hello(formats=(1,), version="2", pid=7)
OFFER = messages.Offer(
    version="1",
    pid=6,
    directory="/",
    config=msgspec.Raw(b'{"image":"x","name":"x"}'),
    logical_block_size=512,
    listener=0,
    control=1,
)
STATE = messages.State(began=5, capacity=8, generation=0, write_back=True)

PARTS = (
    messages.Device,
    messages.Region,
    messages.Addresses,
    messages.Ring,
    messages.Begun,
    messages.BackChannel,
    messages.Inflight,
    messages.Log,
    messages.FrontEnd,
)
DOCUMENT = Path(__file__).parents[2] / "docs" / "upgrade.md"


def document(message, content, fmt=1):
    return json.dumps({"message": message, "format": fmt, "content": content}).encode()


def sent(said):
    """The document in a frame."""
    return said[framing.Header.LAYOUT.size :]


# Documents


@pytest.mark.parametrize(
    "said",
    [
        HELLO,
        OFFER,
        STATE,
        messages.Ready(),
        messages.Taken(),
        messages.Go(),
        messages.State(
            began=1,
            paused=True,
            capacity=1,
            generation=3,
            write_back=False,
            rings=(messages.Ring(index=3, kick=2, counters={"reads": 5}),),
            front_end=messages.FrontEnd(
                socket=0,
                features=1 << 63,
                based_on=0,
                protocol_features=0,
                status=0,
                back_channel=messages.BackChannel(socket=1, overdue=2),
                regions=(
                    messages.Region(
                        guest_address=2**64 - 1, size=1, user_address=0, mmap_offset=0, memory=3
                    ),
                ),
            ),
        ),
    ],
    ids=lambda said: type(said).__name__.lower(),
)
def test_what_is_said_is_understood(said):
    assert framing.read(sent(framing.frame(said, 0)), type(said)) == said


def test_what_has_its_default_is_not_said():
    written = json.loads(sent(framing.frame(messages.Ring(index=1), 0)))
    assert written == {"message": "ring", "format": 1, "content": {"index": 1}}


def test_a_hello_of_any_format_with_any_news_is_understood():
    content = {"formats": [9], "version": "9", "pid": 1, "news": {}}
    assert framing.read(document("hello", content, 9), messages.Hello).formats == (9,)


def test_a_refusal_of_any_format_with_any_news_is_understood():
    with pytest.raises(UpgradeError, match="no way"):
        framing.read(document("refusal", {"reason": "no way", "news": 1}, 9), messages.Ready)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(document("ready", {}, 2), "format 2, not 1", id="other-format"),
        pytest.param(document("ready", {"x": 1}), "unknown field", id="unknown-field"),
        pytest.param(document("ready", []), "no 'ready' of an upgrade", id="a-list"),
        pytest.param(document("go", {}), "'go' where 'ready' was due", id="too-early"),
        pytest.param(document("nonsense", {}), "'nonsense' where 'ready'", id="unknown-message"),
        pytest.param(document("refusal", {"reason": "no way"}), "^no way$", id="refusal"),
        pytest.param(document("refusal", {}), "no 'ready' of an upgrade", id="no-reason"),
        pytest.param(b"{}", "no 'ready' of an upgrade", id="no-envelope"),
        pytest.param(b"", "no 'ready' of an upgrade", id="empty"),
        pytest.param(b"\xff", "no 'ready' of an upgrade", id="no-text"),
        pytest.param(document("ready", {})[:-1], "no 'ready' of an upgrade", id="cut-short"),
        pytest.param(b"[" * 100_000, "no 'ready' of an upgrade", id="deep"),
    ],
)
def test_what_is_not_due_is_refused_with_the_reason(data, reason):
    with pytest.raises(UpgradeError, match=reason):
        framing.read(data, messages.Ready)


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data):
    with pytest.raises(UpgradeError):
        framing.read(data, messages.State)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@given(st.sampled_from(sorted(msgspec.to_builtins(STATE))), JSON)
def test_no_value_of_a_field_does_harm(field, value):
    content = msgspec.to_builtins(STATE) | {field: value}
    with contextlib.suppress(UpgradeError):
        framing.read(document("state", content), messages.State)


@pytest.mark.parametrize(
    "counts", [(framing.MAX_DOCUMENT + 1, 0), (0, 1025), (2**32 - 1, 2**32 - 1)]
)
def test_a_header_that_announces_too_much_is_refused(counts):
    with pytest.raises(UpgradeError, match="at most"):
        framing.Header.decode(struct.pack("=II", *counts))


@pytest.mark.parametrize(("count", "batches"), [(0, 0), (1, 1), (253, 1), (254, 2), (1024, 5)])
def test_descriptors_come_in_batches_that_the_kernel_takes(count, batches):
    assert framing.Header(0, count).batches == batches
    assert [len(batch) for batch in framing.batched(range(count))] == [253] * (count // 253) + (
        [count % 253] if count % 253 else []
    )


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            field.name
            for kind in (*framing.KINDS.values(), *PARTS)
            for field in msgspec.structs.fields(kind)
        }
    ),
)
def test_the_document_tells_of_every_field(name):
    assert f"`{name}`" in DOCUMENT.read_text()


# Descriptors


def test_each_descriptor_is_taken_once():
    out = OutgoingFds()
    assert [out.add(8), out.add_any(None), out.add_any(9)] == [0, None, 1]
    incoming = IncomingFds(out.fds)
    assert incoming.take(1) == 9
    for index in (1, 2):
        with pytest.raises(UpgradeError, match=f"descriptor {index} did not come"):
            incoming.take(index)
    assert len(incoming) == 1
    assert incoming.take_rest() == [8]
    assert len(incoming) == 0


# The exchange


class Scripted:
    """Plays `exchange.Peer`: receives what the script has next, and writes down what is sent."""

    def __init__(self, *script):
        self.script, self.said = list(script), []
        self.has_gone = False

    async def send(self, document, _fds=()):
        if self.has_gone:
            raise UpgradeError("gone")
        self.said.append(type(document).__name__.lower())
        self.last = document

    async def receive(self, kind, limit):
        assert (limit is None) == (kind is messages.Go)
        document = self.script.pop(0)
        if isinstance(document, BaseException):
            raise document
        if not isinstance(document, kind):
            raise UpgradeError(f"{document} where {kind} was due")
        return document, IncomingFds(())

    def end_receiving(self, _last):
        return False


class PlayedDisk:
    """Plays both sides' disk, and writes down what becomes of it."""

    def __init__(self, **failures):
        self.failures, self.calls = failures, []

    def _note(self, name):
        self.calls.append(name)
        if name in self.failures:
            raise self.failures[name]

    def offer(self, _hello, _out):
        self._note("offer")
        return OFFER

    async def freeze(self, _out):
        self._note("freeze")
        return STATE

    def require_undisturbed(self):
        self._note("require_undisturbed")

    async def thaw(self):
        self._note("thaw")

    async def prepare(self, _offer, _fds):
        self._note("prepare")

    async def restore(self, _state, _fds):
        self._note("restore")


TAKER_SAYS = [HELLO, messages.Ready(), messages.Taken()]
GIVER_SAYS = [OFFER, STATE, messages.Go()]


async def test_a_giver_lets_go_only_at_the_end():
    peer, disk = Scripted(*TAKER_SAYS), PlayedDisk()
    assert await exchange.give(peer, disk) == HELLO
    assert peer.said == ["offer", "state", "go"]
    assert disk.calls == ["offer", "freeze", "require_undisturbed"]


async def test_a_taker_takes_step_by_step():
    peer, disk = Scripted(*GIVER_SAYS), PlayedDisk()
    await exchange.take(peer, disk, HELLO)
    assert peer.said == ["hello", "ready", "taken"]
    assert disk.calls == ["prepare", "restore"]


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("failure", [UpgradeError("gone"), asyncio.CancelledError()], ids=repr)
async def test_a_giver_whose_taker_fails_serves_on(step, failure):
    peer, disk = Scripted(*TAKER_SAYS[:step], failure), PlayedDisk()
    with pytest.raises(type(failure)):
        await exchange.give(peer, disk)
    assert "go" not in peer.said
    assert disk.calls.count("freeze") == disk.calls.count("thaw") == (step == 2)


@pytest.mark.parametrize(
    ("step", "failure"),
    [
        ("offer", UpgradeError("stopping")),
        ("freeze", DrainTimeout("3 in flight")),
        ("require_undisturbed", UpgradeError("stopping")),
    ],
)
async def test_a_giver_that_cannot_says_why_and_serves_on(step, failure):
    peer, disk = Scripted(*TAKER_SAYS), PlayedDisk(**{step: failure})
    with pytest.raises(type(failure)):
        await exchange.give(peer, disk)
    assert peer.last == messages.Refusal(reason=str(failure))
    assert disk.calls.count("freeze") == disk.calls.count("thaw")


async def test_a_giver_that_cannot_say_go_serves_on():
    peer, disk = Scripted(*TAKER_SAYS), PlayedDisk()
    disk.require_undisturbed = lambda: setattr(peer, "has_gone", True)
    with pytest.raises(UpgradeError, match="gone"):
        await exchange.give(peer, disk)
    assert disk.calls[-1] == "thaw"


@pytest.mark.parametrize("formats", [(), (2,), (0, 7)], ids=str)
async def test_a_giver_refuses_formats_that_it_does_not_know(formats):
    peer, disk = Scripted(msgspec.structs.replace(HELLO, formats=formats)), PlayedDisk()
    with pytest.raises(UpgradeError, match="takes formats"):
        await exchange.give(peer, disk)
    assert disk.calls == []
    assert "stop the old process" in peer.last.reason


async def test_a_giver_that_is_busy_says_so_before_anything_else():
    peer, disk = Scripted(HELLO), PlayedDisk()
    with pytest.raises(UpgradeError, match="not now"):
        await exchange.give(peer, disk, "not now")
    assert (peer.said, disk.calls) == (["refusal"], [])


@pytest.mark.parametrize("step", ["prepare", "restore"])
async def test_a_taker_that_cannot_says_why(step):
    failure = ImageError("no such file", hint="make it")
    peer, disk = Scripted(*GIVER_SAYS), PlayedDisk(**{step: failure})
    with pytest.raises(ImageError):
        await exchange.take(peer, disk, HELLO)
    assert peer.last.reason == "no such file (make it)"


@pytest.mark.parametrize("step", [0, 1, 2])
async def test_a_taker_without_the_last_word_has_nothing(step):
    peer = Scripted(*GIVER_SAYS[:step], UpgradeError("gone"))
    with pytest.raises(UpgradeError, match="gone"):
        await exchange.take(peer, PlayedDisk(), HELLO)


# The socket


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Transport(ours), theirs


@pytest.fixture
async def taking():
    """A taker that waits for `go`, and the giver's side of the socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        giver = Transport(theirs)
        task = asyncio.create_task(exchange.take(Transport(ours), PlayedDisk(), HELLO))
        for kind, answer in ((messages.Hello, OFFER), (messages.Ready, STATE)):
            await giver.receive(kind, 5)
            await giver.send(answer)
        await giver.receive(messages.Taken, 5)
        yield task, giver


async def test_a_taker_that_is_called_off_before_go_cannot_be_given_the_disk(taking):
    task, giver = taking
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(UpgradeError, match="has gone"):
        await giver.send(messages.Go())


async def test_a_taker_that_is_called_off_once_go_has_come_has_the_disk(taking):
    task, giver = taking
    await giver.send(messages.Go())
    task.cancel()
    await task


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(framing.frame(messages.Ready(), 0), id="another-message"),
        pytest.param(framing.frame(messages.Go(), 1), id="descriptors"),
        pytest.param(framing.frame(messages.Go(), 0)[:-1], id="half"),
    ],
)
async def test_what_is_no_go_leaves_the_disk_where_it_is(pair, sent):
    peer, theirs = pair
    theirs.sendall(sent)
    assert not peer.end_receiving(messages.Go)


async def test_hundreds_of_descriptors_come_in_their_order():
    ours, theirs = socket.socketpair()
    out = [os.memfd_create(str(n)) for n in range(600)]
    with ours, theirs:
        giver, taker = Transport(ours), Transport(theirs)
        (said, fds), _ = await asyncio.gather(
            taker.receive(messages.Go, 5), giver.send(messages.Go(), out)
        )
        assert said == messages.Go()
        for n in (0, 252, 253, 599):
            fd = fds.take(n)
            assert os.path.samestat(os.fstat(fd), os.fstat(out[n]))
            os.close(fd)
        taker.close()
    for fd in out:
        os.close(fd)


@pytest.mark.parametrize(
    ("data", "fds", "reason"),
    [
        pytest.param(b"", 0, "has gone", id="nothing"),
        pytest.param(b"\0\0\0", 0, "has gone", id="half-a-header"),
        pytest.param(struct.pack("=II", 9, 0) + b"{", 0, "has gone", id="half-a-document"),
        pytest.param(framing.frame(messages.Go(), 2), 0, "were lost", id="no-descriptors"),
        pytest.param(framing.frame(messages.Go(), 2), 1, "1 descriptors, not 2", id="too-few"),
        pytest.param(framing.frame(messages.Go(), 2), 3, "3 descriptors, not 2", id="too-many"),
        pytest.param(framing.frame(messages.Ready(), 2), 2, "was due", id="wrong-message"),
    ],
)
async def test_what_comes_broken_is_refused_and_leaves_no_descriptor(pair, data, fds, reason):
    peer, theirs = pair
    before = open_fds()
    theirs.sendall(data)
    if fds:
        socket.send_fds(theirs, [b"\0"], [theirs.fileno()] * fds)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(UpgradeError, match=reason):
        await peer.receive(messages.Go, 5)
    assert wait_for_fds(before)


async def test_descriptors_that_nobody_takes_are_closed(pair):
    peer, theirs = pair
    before = open_fds()
    theirs.sendall(framing.frame(messages.Go(), 2))
    socket.send_fds(theirs, [b"\0"], [theirs.fileno()] * 2)
    _, fds = await peer.receive(messages.Go, 5)
    os.close(fds.take(0))
    peer.close()
    assert wait_for_fds(before)


async def test_silence_is_not_waited_for_any_longer(pair):
    with pytest.raises(UpgradeError, match="no answer within 0"):
        await pair[0].receive(messages.Go, 0.01)


async def test_the_other_side_gone_is_an_error_of_a_handover(pair):
    peer, theirs = pair
    theirs.close()
    with pytest.raises(UpgradeError, match="has gone"):
        await peer.send(messages.Go())
