# SPDX-License-Identifier: Apache-2.0
"""A served disk goes on in another process: its front end and its guest notice nothing."""

import itertools
import json
import os
import resource
import signal
import socket
import struct
import subprocess

import pytest

from harness.daemon import PROGRAMS, Daemon, Taker, image, run
from harness.dirtylog import DirtyLog, areas
from harness.frontend import FLUSH, IN, OUT, Disk, FrontEnd, Protocol, Request
from harness.relay import Relay
from harness.storage import loop_device
from harness.vring import DESC_NEXT, GuestMemory

pytestmark = pytest.mark.usefixtures("each_engine")

MIB = 1 << 20
SIZE = 16 * MIB
SECTORS = SIZE // 512
OK = 0


@pytest.fixture
def upgrade():
    """Has a new process take a disk over, seen to the end of the old one: the new one."""
    running = []

    def upgrade(old, **popen):
        running.append(Taker(old, **popen))
        running[-1].announced = running[-1].ready()
        assert old.end(None) == 0
        return running[-1]

    yield upgrade
    for each in reversed(running):
        each.__exit__()


def sector(number):
    return number.to_bytes(4, "little") * 128


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("queues", [1, 4])
def test_requests_go_on_before_during_and_after(daemon, front_end, path, packed, queues):
    disks = list(front_end.disks(queues, 16, packed=packed))
    numbers = itertools.count()
    written = 0

    def work():
        for disk in disks:
            batch = [next(numbers) % SECTORS for _ in range(4)]
            heads = [disk.submit(OUT, n, sector(n)) for n in batch]
            assert all(done.status == OK for done in disk.wait(*heads))
            assert disk.read(batch[-1], 512) == (OK, sector(batch[-1]))
        return 4 * len(disks)

    written += work()
    with Taker(daemon) as new:
        while daemon.process.poll() is None:
            written += work()
        new.ready()
        written += work()
        assert daemon.end(None) == 0
        assert new.call("stats")["total"]["writes"] == written
        assert new.call("stats")["total"]["errors"] == 0
        content = path.read_bytes()
        for number in range(min(written, SECTORS)):
            assert content[number * 512 : number * 512 + 512] == sector(number)
        assert new.end() == 0


@pytest.mark.usefixtures("kernel_only")
def test_a_guest_that_writes_like_another_format_goes_on_until_the_next_start(
    daemon, front_end, path, upgrade, tmp_path
):
    header = b"QFI\xfb".ljust(512, b"\0")
    disk = front_end.disk()
    assert disk.write(0, header) == OK
    new = upgrade(daemon)
    assert disk.read(0, 512) == (OK, header)
    assert new.end() == 0
    command = ["serve", path, "--socket", tmp_path / "disk.sock"]
    refused = run(*command)
    assert refused.returncode == 1
    assert "--format raw" in refused.stderr
    with Daemon(path, tmp_path, "--format", "raw") as again:
        again.ready()
        with FrontEnd.connect(again.socket) as other:
            assert other.disk().read(0, 512) == (OK, header)


def test_requests_of_the_moment_are_answered_by_one_of_the_two(daemon, front_end, upgrade):
    disk = front_end.disk()
    daemon.call("pause")
    heads = [disk.submit(OUT, n, sector(n)) for n in range(20)]
    new = upgrade(daemon)
    assert new.call("show")["state"] == "paused"
    with pytest.raises(TimeoutError):
        disk.wait(*heads, timeout=0.2)
    new.call("resume")
    assert all(done.status == OK for done in disk.wait(*heads))
    assert disk.read(7, 512) == (OK, sector(7))


def test_a_disk_goes_from_hand_to_hand(daemon, front_end, upgrade):
    disk = front_end.disk(packed=True, size=8)
    served = daemon
    for n in range(3):
        assert disk.write(n, sector(n)) == OK
        served = upgrade(served)
        assert disk.read(n, 512) == (OK, sector(n))
    assert served.call("stats")["total"]["writes"] == 3
    assert front_end.stop_ring() == disk.ring.base
    assert served.end() == 0


def test_the_new_process_serves_with_the_settings_of_the_old(path, tmp_path, upgrade, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--name", "d", "--cache", "writeback", "--queues", 2, "--queue-size", 128]
    with Daemon(path.relative_to(tmp_path), tmp_path, *options) as old:
        before = old.ready()
        monkeypatch.chdir("/")
        new = upgrade(old)
        assert new.announced == before == new.call("show")


def test_nobody_need_be_connected(daemon, upgrade):
    new = upgrade(daemon)
    with FrontEnd.connect(new.socket) as front_end:
        assert front_end.disk().write(0, sector(1)) == OK
    with FrontEnd.connect(new.socket) as front_end:
        assert front_end.disk().read(0, 512) == (OK, sector(1))
    new.end()
    assert not new.socket.exists()
    assert not new.control.exists()


def test_a_front_end_may_leave_afterwards_and_another_come(daemon, upgrade):
    with FrontEnd.connect(daemon.socket) as front_end:
        front_end.disk().write(0, sector(1))
        new = upgrade(daemon)
    with FrontEnd.connect(new.socket) as front_end:
        assert front_end.disk().read(0, 512) == (OK, sector(1))
    assert new.call("stats")["total"]["reads"] == 1


def test_what_was_negotiated_holds(daemon, front_end, upgrade):
    front_end.disk()
    front_end.set(Request.SET_STATUS, struct.pack("=Q", 15))
    front_end.write_config(32, b"\0")
    config, before = front_end.config(0, 60), daemon.call("show")["front_end"]
    new = upgrade(daemon)
    assert new.call("show")["front_end"] == before
    assert front_end.config(0, 60) == config
    assert front_end.call_u64(Request.GET_STATUS) == 15


def test_a_front_end_that_has_only_just_connected_stays(daemon, front_end, upgrade):
    daemon.wait_for_front_end()
    upgrade(daemon)
    assert front_end.disk().write(0, sector(1)) == OK


def test_a_ring_that_was_stopped_starts_where_it_stopped(daemon, front_end, upgrade):
    disk = front_end.disk()
    disk.write(0, sector(1))
    base = front_end.stop_ring()
    upgrade(daemon)
    assert front_end.stop_ring() == base == 1
    again = front_end.start_ring(0, ring=disk.ring)
    assert Disk(front_end, again).read(0, 512) == (OK, sector(1))


def test_a_disabled_ring_waits(daemon, front_end, upgrade):
    disk = front_end.disk()
    front_end.enable(0, on=False)
    head = disk.submit(OUT, 0, sector(1))
    upgrade(daemon)
    with pytest.raises(TimeoutError):
        disk.wait(head, timeout=0.2)
    front_end.enable(0, on=True)
    assert disk.wait(head)[0].status == OK


def test_a_broken_ring_stays_broken_until_it_starts_anew(daemon, front_end, upgrade):
    broken, healthy = front_end.disks(2)
    broken.write(0, sector(1))
    broken.ring.put_desc(0, 0, 16, DESC_NEXT, 0)
    broken.ring.publish(0)
    broken.ring.kick()
    assert broken.ring.broken()
    new = upgrade(daemon)
    assert new.call("show")["broken_rings"] == [0]
    assert not broken.ring.broken(timeout=0)
    assert healthy.read(0, 512) == (OK, sector(1))
    front_end.stop_ring(0)
    fresh = Disk(front_end, front_end.start_ring(0, base=0))
    assert fresh.read(0, 512) == (OK, sector(1))


def test_hundreds_of_memory_regions_come_along(daemon, front_end, upgrade):
    front_end.memory = GuestMemory([MIB] + [64 << 10] * 299)
    disk = front_end.disk()
    upgrade(daemon)
    far = front_end.memory.regions[-1]
    data = front_end.memory.alloc(4096, 4096, region=299)
    assert far.gpa <= data
    front_end.memory.write(data, sector(5) * 8)
    chain = [(struct.pack("<IIQ", OUT, 0, 8), 16, 0), (data, 4096, 0), (b"\xff", 1, 2)]
    disk.ring.publish(disk.ring.add(chain))
    disk.ring.kick()
    assert disk.ring.wait_used()
    assert disk.read(8, 4096) == (OK, sector(5) * 8)
    front_end.remove_region(front_end.memory.regions[150])
    assert disk.write(0, sector(1)) == OK


@pytest.mark.parametrize("old_region", [False, True], ids=["region", "region of old"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_what_is_in_flight_is_recorded_as_before(path, tmp_path, upgrade, packed, old_region):
    slow = f"faulty:delay=1000s@any+0-64K:{path}"  # what touches that is never done
    with Daemon(slow, tmp_path) as old, FrontEnd.connect(old.socket) as front_end:
        front_end.prepare(packed=packed)
        if old_region:
            front_end.track_inflight_as_of_old(packed=packed)
        else:
            front_end.track_inflight(2, 64)
        disks = [front_end.make_disk(index, 64) for index in range(2)]
        assert [disk.write(256 + n, sector(1)) for n, disk in enumerate(disks)] == [OK, OK]
        new = upgrade(old)
        heads = [disk.submit(OUT, n, sector(n + 7)) for n, disk in enumerate(disks)]
        assert [disk.write(256 + n, sector(2)) for n, disk in enumerate(disks)] == [OK, OK]
        new.end(signal.SIGKILL)
        with Daemon(path, tmp_path) as third:
            third.ready()
            front_end.resume(third.socket)
            for disk, head in zip(disks, heads, strict=True):
                assert disk.wait(head)[0].status == OK
            assert [disk.read(n, 512)[1] for n, disk in enumerate(disks)] == [sector(7), sector(8)]


def test_a_region_that_nothing_is_recorded_in_keeps_no_disk_where_it_is(daemon, front_end, upgrade):
    front_end.prepare()
    front_end.track_inflight(1, 64)
    _, fd = front_end.inflight
    os.pwrite(fd, struct.pack("=H", 2), 8)  # the version of another kind of back end
    front_end.set(Request.SET_INFLIGHT_FD, front_end.inflight[0], [fd])
    disk = front_end.make_disk(0, 64)
    assert disk.write(0, sector(1)) == OK
    new = upgrade(daemon)
    assert disk.read(0, 512) == (OK, sector(1))
    assert new.end() == 0


def test_a_serving_process_may_have_all_the_descriptors_that_it_is_allowed(path, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with Daemon(path, tmp_path) as daemon:
            daemon.ready()
            limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
            assert limits == (hard, hard)
            assert hard > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("kernel_only")
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_guest_that_is_migrated_stays_so(path, tmp_path, upgrade, packed):
    with Daemon(path, tmp_path) as old, FrontEnd.connect(old.socket) as front_end:
        disk = front_end.disk(packed=packed)
        with DirtyLog(front_end, offset=4096) as log:
            log.start()
            new = upgrade(old)
            front_end.enable(0, on=False)
            log.take()
            front_end.enable(0, on=True)
            data = front_end.memory.alloc(4096, 4096)
            chain = [(struct.pack("<IIQ", IN, 0, 0), 16, 0), (data, 4096, 2), (b"\xff", 1, 2)]
            disk.ring.publish(disk.ring.add(chain))
            disk.ring.kick()
            assert disk.ring.wait_used()
            marked = log.take()
            assert data // 4096 in marked
            assert areas(disk.ring) & marked
            assert new.call("show")["image_locked"] is True
            front_end.stop_ring()
            assert new.call("show")["image_locked"] is False
            again = upgrade(new)
            assert again.call("show")["image_locked"] is False
            log.stop()
            back = Disk(front_end, front_end.start_ring(0, ring=disk.ring))
            assert back.write(0, sector(1)) == OK
            assert again.call("show")["image_locked"] is True


@pytest.mark.usefixtures("kernel_only")
def test_a_disk_that_waits_for_its_guest_waits_in_the_new_process(path, tmp_path, upgrade):
    with Daemon(path, tmp_path, "--incoming") as old:
        assert old.ready()["image_locked"] is False
        new = upgrade(old)
        assert new.announced["image_locked"] is False
        with FrontEnd.connect(new.socket) as front_end:
            assert front_end.disk().write(0, sector(1)) == OK
            assert new.call("show")["image_locked"] is True


def test_growth_is_announced_over_the_same_back_channel(daemon, front_end, upgrade, background):
    front_end.disk()
    front_end.config(0, 60)
    new = upgrade(daemon)
    resized = background.submit(new.call, "resize", "32M")
    _, config = front_end.answer_backend()
    assert struct.unpack_from("<Q", config)[0] == 2 * SECTORS
    assert resized.result(10)["announced"] == "fetched"


def test_an_answer_that_is_due_to_the_old_process_is_not_taken_for_another(
    daemon, front_end, upgrade, background
):
    front_end.disk()
    front_end.config(0, 60)
    resized = background.submit(daemon.call, "resize", "32M")
    assert front_end.backend_requests.recv(64)  # and it stays without an answer
    assert front_end.capacity() == 2 * SECTORS
    assert resized.result(10)["announced"] == "fetched"
    new = upgrade(daemon)
    resized = background.submit(new.call, "resize", "48M")
    front_end.backend_requests.sendall(struct.pack("=IIIQ", 2, 5, 8, 1))  # the old one's: no
    front_end.answer_backend()
    assert resized.result(10)["announced"] == "fetched"
    new.wait_for_log("configuration change announced", taken=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("{}", ["--read-only"], id="read-only"),
        pytest.param("null:1G", [], id="null"),
        pytest.param("faulty:delay=1ms@read:{}", [], id="faulty"),
        pytest.param("{}", ["--cache", "writethrough"], id="writethrough"),
        pytest.param("{}", ["--register-memory", "--workers", 1], id="registered"),
    ],
)
def test_every_kind_of_disk_goes_on(path, tmp_path, upgrade, name, options):
    with Daemon(name.format(path), tmp_path, *options) as old:
        before = old.ready()
        with FrontEnd.connect(old.socket) as front_end:
            disks = list(front_end.disks(2))
            registered = "--register-memory" in options
            old.wait_for("memory_registered", registered)
            before = old.call("show")
            new = upgrade(old)
            new.wait_for("memory_registered", registered)
            for disk in disks:
                assert disk.read(0, 4096)[0] == OK
                assert disk.request(FLUSH).status == OK
            assert new.call("show") == before


def test_a_null_disk_keeps_the_size_that_it_was_given(tmp_path, upgrade):
    with Daemon("null:1G", tmp_path) as old:
        old.ready()
        old.call("resize", "2G")
        assert upgrade(old).call("show")["size"] == 2 << 30


@pytest.mark.usefixtures("kernel_only")
def test_a_block_device_goes_on(tmp_path, upgrade):
    with (
        loop_device(image(tmp_path / "backing", SIZE)) as device,
        Daemon(device, tmp_path) as old,
    ):
        old.ready()
        with FrontEnd.connect(old.socket) as front_end:
            disk = front_end.disk()
            new = upgrade(old)
            assert disk.write(0, sector(3)) == OK
            assert new.end() == 0


@pytest.mark.usefixtures("kernel_only")
def test_the_image_is_locked_all_the_time(daemon, upgrade, path):
    new = upgrade(daemon)
    info = ["qemu-io", "-f", "raw", "-c", "write 0 512", path]
    refused = subprocess.run(info, check=False, capture_output=True, text=True)
    assert "lock" in refused.stderr
    assert run("serve", path, "--socket", str(path) + ".s").returncode == 1
    assert new.end() == 0


def test_the_service_manager_learns_who_is_the_service_now(path, tmp_path, upgrade):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Daemon(path, tmp_path, env=environment) as old:
            old.ready()
            assert manager.recv(4096).startswith(b"READY=1")
            new = upgrade(old)
            messages = {manager.recv(4096), manager.recv(4096)}
            assert f"MAINPID={new.process.pid}".encode() in messages
            assert any(line.startswith(b"READY=1") for line in messages)
            new.end()
            assert manager.recv(4096) == b"STOPPING=1"


def test_what_a_new_process_says_of_itself_does_not_reach_the_service_manager(path, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}

        def lie(message):
            if message.name == "hello":
                message.content["pid"] = 1

        with Daemon(path, tmp_path, env=environment) as old:
            old.ready()
            assert manager.recv(4096).startswith(b"READY=1")
            with (
                Relay(tmp_path / "relay.sock", old.control, lie) as relay,
                Taker(old, relay.path) as new,
            ):
                new.ready()
                messages = {manager.recv(4096), manager.recv(4096)}
                # Whoever speaks to the old process is this one, with its relay.
                assert f"MAINPID={os.getpid()}".encode() in messages
                assert new.end() == 0


def test_a_message_that_has_only_begun_goes_on_in_the_new_process(daemon, front_end, upgrade):
    disk = front_end.disk()
    message = struct.pack("=IIIQ", Request.SET_STATUS, 0x9, 8, 15)
    front_end.sock.sendall(message[:9])
    new = upgrade(daemon)
    assert disk.write(0, bytes(512)) == OK
    front_end.sock.sendall(message[9:])
    assert front_end.receive()[:2] == (Request.SET_STATUS, 0x5)
    assert front_end.call_u64(Request.GET_STATUS) == 15
    message = struct.pack("=IIIQ", Request.SET_VRING_ERR, 0x9, 8, 0)
    socket.send_fds(front_end.sock, [message[:2]], [disk.ring.err_fd])
    newer = upgrade(new)
    front_end.sock.sendall(message[2:])
    assert front_end.receive()[:2] == (Request.SET_VRING_ERR, 0x5)
    assert disk.write(0, bytes(512)) == OK
    assert newer.end() == 0


def test_an_acknowledgement_that_has_only_begun_goes_on_in_the_new_process(
    daemon, front_end, upgrade, background
):
    front_end.disk()
    front_end.config(0, 60)
    grown = background.submit(daemon.call, "resize", "32M")
    assert front_end.backend_requests.recv(64)
    assert front_end.capacity() == 2 * SIZE // 512
    assert grown.result(10)["announced"] == "fetched"
    answer = struct.pack("=IIIQ", 2, 5, 8, 0)
    front_end.backend_requests.sendall(answer[:5])
    new = upgrade(daemon)
    front_end.backend_requests.sendall(answer[5:])
    grown = background.submit(new.call, "resize", "48M")
    assert front_end.answer_backend()[0] == 2
    assert grown.result(10)["announced"] == "fetched"
    assert new.end() == 0


def test_both_say_who_the_other_was(daemon, upgrade):
    new = upgrade(daemon)
    given = daemon.wait_for_log("handed over", pid=new.process.pid)
    taken = new.wait_for_log("taken over", pid=daemon.process.pid)
    assert given["version"] == taken["version"]
    assert taken["pause_ms"] > 0


@pytest.mark.usefixtures("kernel_only")
def test_a_person_is_shown_what_is_served(daemon):
    with subprocess.Popen(
        [PROGRAMS / "blkd", "upgrade", "--control", daemon.control],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as new:
        assert new.stdout.readline() == "serving\n"
        new.send_signal(signal.SIGTERM)
        assert new.wait(5) == 0


def test_without_a_served_disk_there_is_nothing_to_take_over(tmp_path):
    refused = run("upgrade", "--control", tmp_path / "nobody")
    assert refused.returncode == 1
    assert "nobody answers" in refused.stderr


def test_a_directory_that_was_removed_cannot_be_gone_on_in(path, tmp_path):
    (gone := tmp_path / "gone").mkdir()
    with Daemon(path, tmp_path, cwd=gone) as daemon, FrontEnd.connect(daemon.socket) as front_end:
        disk = front_end.disk()
        gone.rmdir()
        refused = run("upgrade", "--control", daemon.control)
        assert refused.returncode == 1
        assert "its working directory is gone" in refused.stderr
        assert "stop the old process" in refused.stderr
        daemon.wait_for_log("not handed over")
        assert "Traceback" not in refused.stderr + daemon.errors()
        assert disk.write(0, sector(1)) == OK


def test_queues_that_are_not_in_use_yet_can_be_used_afterwards(daemon, front_end, upgrade):
    first = front_end.disk()
    upgrade(daemon)
    second = Disk(front_end, front_end.start_ring(3))
    assert second.write(0, sector(1)) == OK
    assert first.request(IN, size=512).data == sector(1)
    assert json.dumps(sorted(front_end.rings)) == "[0, 3]"


def test_a_front_end_without_extensions_goes_on(daemon, front_end, upgrade):
    front_end.negotiate(features=int(front_end.offered()) & ~(1 << 30), protocol_features=0)
    front_end.share_memory()
    disk = Disk(front_end, front_end.start_ring())
    assert front_end.protocol_features == Protocol(0)
    assert disk.write(0, sector(1)) == OK
    upgrade(daemon)
    assert disk.read(0, 512) == (OK, sector(1))
