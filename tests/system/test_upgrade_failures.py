# SPDX-License-Identifier: Apache-2.0
"""A live upgrade that comes to nothing: the old process serves on, and nobody notices."""

import base64
import contextlib
import functools
import os
import re
import signal
import socket
import struct
from dataclasses import dataclass

import pytest

from harness.daemon import Daemon, Taker, image, run
from harness.frontend import DESC_NEXT, OUT, FrontEnd
from harness.relay import Cut, Relay
from harness.vring import GuestMemory

MIB = 1 << 20
SIZE = 16 * MIB
OK = 0
MESSAGES = ["hello", "offer", "ready", "state", "taken", "go"]


@pytest.fixture
def attempt(daemon, tmp_path):
    """An upgrade in which a hook looks at each message: the new process, ended, and what passed."""
    return functools.partial(attempted, daemon, tmp_path / "relay.sock")


@dataclass
class Ended:
    """A new process that is no more: its status, and what it wrote to standard error."""

    status: int
    said: str


def attempted(daemon, path, hook):
    path.unlink(missing_ok=True)
    with Relay(path, daemon.control, hook) as relay, Taker(daemon, path) as new:
        new.process.wait(20)
    said = new.errors()
    new.log.unlink()  # the next one's has the same name
    return Ended(new.process.returncode, said), relay.seen


def goes_on(daemon, *disks):
    """Whether a disk is served as if nothing had been."""
    assert daemon.process.poll() is None, daemon.errors()
    assert daemon.call("show")["state"] == "serving"
    for n, disk in enumerate(disks):
        assert disk.write(n, n.to_bytes(2, "little") * 256) == OK
        assert disk.read(n, 512) == (OK, n.to_bytes(2, "little") * 256)
    if disks:
        assert disks[0].front_end.capacity() > 0
    return True


def on(name, act):
    """A hook that acts on one message."""

    def hook(message):
        if message.name == name:
            act(message)

    return hook


def cut(_message):
    raise Cut


@pytest.mark.parametrize("name", MESSAGES)
def test_a_conversation_that_breaks_changes_nothing(daemon, front_end, attempt, name):
    disks = list(front_end.disks(3))
    heads = [disk.submit(OUT, 9, bytes(512)) for disk in disks]
    if name == "go":  # too late: it was sent, and the new process does not receive it
        new, _ = attempt(on(name, cut))
        assert new.status == 1
        assert daemon.end(None) == 0
        return
    new, seen = attempt(on(name, cut))
    assert seen == MESSAGES[: MESSAGES.index(name)]
    assert new.status == 1
    assert "the other process has gone" in new.said
    assert [disk.wait(head)[0].status for disk, head in zip(disks, heads, strict=True)] == [OK] * 3
    assert goes_on(daemon, *disks)


@pytest.mark.parametrize("name", MESSAGES[:-2])
def test_a_new_process_that_is_killed_changes_nothing(daemon, front_end, tmp_path, name):
    disks = list(front_end.disks(2, packed=True))
    killed = []

    def kill(_message):
        killed[0].process.kill()
        killed[0].process.wait(10)

    with (
        Relay(tmp_path / "relay.sock", daemon.control, on(name, kill)) as relay,
        Taker(daemon, relay.path) as new,
    ):
        killed.append(new)
        new.process.wait(20)
    assert goes_on(daemon, *disks)
    daemon.wait_for_log("not handed over")


@pytest.mark.parametrize("name", ["offer", "state"])
def test_a_new_process_that_hangs_is_not_waited_for_long(daemon, front_end, tmp_path, name):
    disk = front_end.disk()
    hung = []

    def hang(_message):
        hung[0].process.send_signal(signal.SIGSTOP)

    if name == "offer":  # it has a minute to prepare, while the disk is served
        with (
            Relay(tmp_path / "relay.sock", daemon.control, on(name, hang)) as relay,
            Taker(daemon, relay.path) as new,
        ):
            hung.append(new)
            while "offer" not in relay.seen:
                assert disk.read(0, 512)[0] == OK
            assert goes_on(daemon, disk)
            new.process.kill()
    else:
        with (
            Relay(tmp_path / "relay.sock", daemon.control, on(name, hang)) as relay,
            Taker(daemon, relay.path) as new,
        ):
            hung.append(new)
            daemon.wait_for_log("not handed over", reason="no answer within 2 s")
            assert goes_on(daemon, disk)
            new.process.send_signal(signal.SIGCONT)
            new.process.wait(10)
            assert new.process.returncode == 1
    assert goes_on(daemon, disk)


@pytest.fixture(scope="module")
def credulous(tmp_path_factory):
    """A daemon that is sent many lies, and two disks of its front end."""
    directory = tmp_path_factory.mktemp("credulous")
    with Daemon(image(directory / "disk.img", SIZE), directory, "--queues", 4) as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            front_end.prepare()
            front_end.track_inflight(2, 64)
            yield daemon, [front_end.make_disk(index, 64) for index in range(2)]


def change(**fields):
    """Puts other values into a message's content."""
    return lambda message: message.content.update(fields)


def first_ring(**fields):
    return lambda message: message.content["rings"][0].update(fields)


def of_front_end(**fields):
    return lambda message: message.content["front_end"].update(fields)


def first_region(**fields):
    return lambda message: message.content["front_end"]["regions"][0].update(fields)


def last_region(**fields):
    return lambda message: message.content["front_end"]["regions"][-1].update(fields)


def of_record(**fields):
    return lambda message: message.content["front_end"]["inflight"].update(fields)


def replace_fd(find):
    """Puts a file in the place of the descriptor that `find` picks from a message's content."""

    def act(message):
        index = find(message.content)
        os.close(message.fds[index])
        message.fds[index] = os.open("/dev/zero", os.O_RDWR)

    return act


def listening_front_end(message):
    index = message.content["front_end"]["socket"]
    os.close(message.fds[index])
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")  # to a name that the kernel chooses
        sock.listen(1)
        message.fds[index] = sock.detach()


def drop_last_fd(message):
    os.close(message.fds.pop())


def add_fd(message):
    message.fds.append(os.open("/dev/zero", os.O_RDWR))


def other_format(message):
    message.document["format"] = 99


def encoded(data):
    return base64.b64encode(data).decode()


GET_FEATURES = struct.pack("=III", 1, 1, 0)
HUGE = struct.pack("=III", 1, 1, 1 << 30)


@pytest.mark.parametrize(
    "lie",
    [
        ("hello", change(formats=[7, 8]), "takes formats 7, 8, not 1"),
        ("hello", change(formats="all"), "no 'hello' of an upgrade"),
        ("offer", other_format, "format 99, not 1"),
        ("offer", change(novelty=1), "novelty"),
        ("offer", change(config={"image": "x"}), "settings are of another version"),
        ("offer", change(config={"image": "x", "name": "x", "new": 1}), "another version"),
        ("offer", change(directory="/nowhere"), "directory cannot be entered"),
        ("offer", change(logical_block_size=0), "logical_block_size"),
        ("offer", change(logical_block_size=513), "logical_block_size"),
        ("offer", change(rings=[64]), r"rings \[64\] of 4"),
        ("offer", change(rings=[0, 0]), "rings"),
        ("offer", drop_last_fd, "descriptor"),
        ("offer", add_fd, "1 descriptors came that nothing names"),
        ("offer", replace_fd(lambda c: c["listener"]), "no socket"),
        ("offer", replace_fd(lambda c: c["control"]), "no socket"),
        ("offer", replace_fd(lambda c: c["image"]), "no file and no block device"),
        ("state", other_format, "format 99, not 1"),
        ("state", change(novelty=1), "novelty"),
        ("state", change(capacity=0), "capacity"),
        ("state", change(capacity=2**63), "capacity"),
        ("state", change(rings=[{"index": 9}]), r"rings \[9\] of 4"),
        ("state", drop_last_fd, "did not come"),
        ("state", add_fd, "that nothing names"),
        ("state", first_ring(kick=0), "named twice"),
        ("state", first_ring(novelty=1), "novelty"),
        ("state", first_ring(size=100), "not a power of two"),
        ("state", first_ring(size=0), "runs without all that a ring needs"),
        ("state", first_ring(size=2**40), "not a power of two"),
        ("state", first_ring(base=0x10000), "from 0x10000"),
        ("state", first_ring(base=-1), "base"),
        ("state", first_ring(addresses={"desc": 1, "used": 2, "avail": 3}), "not aligned"),
        ("state", first_ring(addresses={"desc": 0, "used": 0, "avail": 0}), "outside the memory"),
        ("state", first_ring(addresses={"desc": 2**70, "used": 0, "avail": 0}), "outside|number"),
        ("state", first_ring(counters={"reads": -1}), "reads|counters"),
        ("state", of_front_end(features=1 << 60), "never offered"),
        ("state", of_front_end(protocol_features=1 << 40), "are not offered"),
        ("state", of_front_end(status=256), "status"),
        ("state", first_region(size=2**64), "wraps"),
        ("state", last_region(size=2**50), "ends at"),
        ("state", first_region(guest_address=0x900000), "overlap"),
        ("state", replace_fd(lambda c: c["rings"][0]["call"]), "not an eventfd"),
        ("state", replace_fd(lambda c: c["front_end"]["socket"]), "no socket"),
        ("state", listening_front_end, "socket that came listens"),
        ("state", replace_fd(lambda c: c["front_end"]["back_channel"]["socket"]), "no socket"),
        ("state", replace_fd(lambda c: c["front_end"]["regions"][0]["memory"]), "memory file"),
        ("state", replace_fd(lambda c: c["front_end"]["inflight"]["memory"]), "memory file"),
        ("state", of_record(mmap_size=64), "in-flight region of 64 bytes"),
        ("state", of_record(mmap_offset=1), "in-flight region of [0-9]+ bytes at 0x1"),
        ("state", of_record(packed=True), "in-flight region of"),
        ("state", of_front_end(log={"size": 0, "offset": 0, "memory": 0}), "dirty log of 0 bytes"),
        ("state", of_front_end(log={"size": 8, "offset": 0, "memory": 0}), "named twice|did not"),
        ("state", of_record(queues=5), "up to 4 of"),
        ("state", of_front_end(begun={"data": ""}), "begun that is none"),
        ("state", of_front_end(begun={"data": encoded(bytes(12))}), "begun that cannot be"),
        (
            "state",
            of_front_end(begun={"data": encoded(GET_FEATURES)}),
            "begun that is none, or who",
        ),
        ("state", of_front_end(begun={"data": encoded(HUGE)}), "announces"),
        ("state", of_front_end(begun={"data": encoded(b"x"), "descriptors": [0]}), "named twice"),
    ],
)
def test_what_cannot_be_true_is_refused_with_a_reason(credulous, tmp_path, lie):
    name, act, reason = lie
    daemon, disks = credulous
    new, _ = attempted(daemon, tmp_path / "relay.sock", on(name, act))
    assert new.status == 1
    assert re.search(reason, new.said), new.said
    assert "Traceback" not in new.said
    assert goes_on(daemon, *disks)
    assert daemon.wait_for_log("not handed over")


def test_the_reason_is_sent_to_the_other_side(daemon, attempt):
    attempt(on("state", change(novelty=1)))
    assert "novelty" in daemon.wait_for_log("not handed over")["reason"]
    new, _ = attempt(on("hello", change(formats=[7])))
    assert "takes formats 7" in new.said


def test_requests_that_do_not_end_in_time_keep_the_disk_where_it_is(path, tmp_path):
    with Daemon(f"faulty:delay=3s@read:{path}", tmp_path) as daemon:
        daemon.ready()
        with FrontEnd.connect(daemon.socket) as front_end:
            disk = front_end.disk()
            slow = disk.submit(0, 0, size=512)
            assert disk.write(8, bytes(512)) == OK  # what came before it has been fetched
            refused = run("upgrade", "--control", daemon.control)
            assert refused.returncode == 1
            assert "in flight" in refused.stderr
            assert disk.write(8, bytes(512)) == OK
            assert disk.wait(slow)[0].status == OK


def test_only_one_takes_over_at_a_time(daemon, front_end, tmp_path):
    disk = front_end.disk()
    seen = []

    def second(_message):
        seen.append(run("upgrade", "--control", daemon.control))

    with (
        Relay(tmp_path / "relay.sock", daemon.control, on("ready", second)) as relay,
        Taker(daemon, relay.path) as new,
    ):
        new.ready()
        assert daemon.end(None) == 0
        assert disk.write(0, bytes(512)) == OK
        assert new.end() == 0
    assert seen[0].returncode == 1
    assert "already" in seen[0].stderr


def test_nothing_can_be_changed_while_the_disk_changes_hands(daemon, front_end, attempt):
    disk = front_end.disk()
    refused = []

    def meddle(_message):
        calls = ["pause"], ["resume"], ["resize", "32M"]
        refused.extend(run(*call, "--control", daemon.control) for call in calls)
        raise Cut

    attempt(on("state", meddle))
    assert [each.returncode for each in refused] == [1, 1, 1]
    assert all("handed to another process" in each.stderr for each in refused)
    assert goes_on(daemon, disk)


@pytest.mark.parametrize("name", ["ready", "state"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_old_process_that_gets_a_signal_to_end_ends(daemon, front_end, attempt, name, number):
    front_end.disk()

    def end(_message):
        daemon.process.send_signal(number)
        daemon.wait_for_log("stopping")

    new, _ = attempt(on(name, end))
    assert new.status == 1
    assert daemon.end(None) == 0
    assert front_end.wait_closed()
    assert not daemon.socket.exists()


@pytest.mark.parametrize("name", ["offer", "taken"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_new_process_that_is_told_to_end_before_go_leaves_the_disk(
    daemon, front_end, tmp_path, name, number
):
    disk = front_end.disk()
    ended = []

    def end(_message):
        ended.append(new.end(number))
        raise Cut

    with (
        Relay(tmp_path / "relay.sock", daemon.control, on(name, end)) as relay,
        Taker(daemon, relay.path) as new,
    ):
        new.process.wait(20)
    assert ended == [0]
    assert goes_on(daemon, disk)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_new_process_that_is_told_to_end_as_go_comes_ends_in_good_order(
    daemon, front_end, tmp_path, number
):
    disk = front_end.disk()
    assert disk.write(0, bytes(512)) == OK

    def stop(_message):
        new.process.send_signal(signal.SIGSTOP)

    with (
        Relay(tmp_path / "relay.sock", daemon.control, on("go", stop)) as relay,
        Taker(daemon, relay.path) as new,
    ):
        assert daemon.end(None, timeout=20) == 0
        relay.join()
        assert relay.seen == MESSAGES
        new.process.send_signal(number)
        assert new.end(signal.SIGCONT) == 0
        new.wait_for_log("taken over")
        new.wait_for_log("stopping")
    assert front_end.wait_closed()
    assert not new.socket.exists()
    assert not new.control.exists()


@pytest.mark.parametrize("name", ["hello", "state"])
def test_a_front_end_may_leave_meanwhile(daemon, tmp_path, name):
    front_end = FrontEnd.connect(daemon.socket)
    front_end.disk()

    def leave(_message):
        front_end.close()
        if name == "hello":
            daemon.wait_for_log("front end left")

    with (
        Relay(tmp_path / "relay.sock", daemon.control, on(name, leave)) as relay,
        Taker(daemon, relay.path) as new,
    ):
        new.ready()
        assert daemon.end(None) == 0
        if name == "state":
            new.wait_for_log("front end left")
        with FrontEnd.connect(new.socket) as again:
            assert goes_on(new, again.disk())


def test_a_front_end_that_comes_meanwhile_is_served_by_the_new_process(daemon, tmp_path):
    coming = []
    with (
        Relay(
            tmp_path / "relay.sock",
            daemon.control,
            on("state", lambda _: coming.append(FrontEnd.connect(daemon.socket))),
        ) as relay,
        Taker(daemon, relay.path) as new,
    ):
        new.ready()
        with coming[0] as front_end:
            assert goes_on(new, front_end.disk())


def test_memory_that_is_taken_away_meanwhile_ends_the_front_end_only(daemon, attempt):
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.memory = GuestMemory([8 * MIB])
        front_end.disk()

        def shrink(_message):
            os.ftruncate(front_end.memory.regions[0].fd, 0)
            for ring in front_end.rings.values():
                ring.kick()

        new, _ = attempt(on("ready", shrink))
        assert new.status == 1
    with FrontEnd.connect(daemon.socket) as again:
        assert goes_on(daemon, again.disk())


def test_growth_that_nobody_has_seen_yet_is_seen(daemon, front_end, tmp_path, path):
    front_end.disk()
    front_end.config(0, 60)
    with (
        Relay(
            tmp_path / "relay.sock",
            daemon.control,
            on("state", lambda _: os.truncate(path, 2 * SIZE)),
        ) as relay,
        Taker(daemon, relay.path) as new,
    ):
        new.ready()
        assert daemon.end(None) == 0
        new.wait_for("size", 2 * SIZE)
        _, config = front_end.answer_backend()
        assert struct.unpack_from("<Q", config)[0] == 2 * SIZE // 512
        assert new.end() == 0


def test_a_taker_that_announces_too_much_is_refused(daemon):
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(daemon.control))
        stranger.sendall(
            b"POST /v1/export/upgrade HTTP/1.1\r\nHost: x\r\n"
            b"Connection: upgrade\r\nUpgrade: blkd-handover\r\n\r\n"
        )
        stranger.settimeout(10)
        assert stranger.recv(4096).startswith(b"HTTP/1.1 101 ")
        stranger.sendall(struct.pack("=II", 2**31, 5000) + b"x" * 4000)
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(4096):
                pass
    assert "2147483648 bytes" in daemon.wait_for_log("not handed over")["reason"]
    assert goes_on(daemon)


def test_a_broken_ring_whose_memory_is_away_is_not_given_away(daemon):
    with FrontEnd.connect(daemon.socket) as front_end:
        broken, other = front_end.disks(2)
        ring = broken.ring
        ring.put_desc(0, 0, 16, DESC_NEXT, 0)  # a descriptor that follows itself
        ring.publish(0)
        ring.kick()
        assert ring.broken()
        front_end.stop_ring(1)
        front_end.remove_region(broken.memory.regions[0])
        with Taker(daemon) as new:
            assert new.process.wait(20) != 0
        assert "ring 0 lies in no memory at the moment" in new.errors()
        front_end.add_region(broken.memory.regions[0])
        front_end.start_ring(1, ring=other.ring)
        assert other.write(0, bytes(512)) == OK
