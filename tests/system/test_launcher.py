# SPDX-License-Identifier: Apache-2.0
"""A launcher and the processes of its exports: started, killed in any order, taken note of."""

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from blkd.control.client import call
from blkd.control.lending import borrow
from blkd.daemon import orders
from blkd.daemon.launchers import Launchers
from blkd.errors import (
    ConfigError,
    ControlError,
    DataPlaneError,
    ImageError,
    LaunchError,
    SocketError,
)
from blkd.host import unix_socket
from harness.daemon import image
from harness.frontend import FrontEnd
from harness.network import Namespace
from harness.nic import NetDriver, frame, is_ours
from harness.vsock import VsockDriver
from tests.launched import LIMIT, Launching, has_ended
from tests.vsock_host import read_all

BLOCK = bytes(range(256)) * 16
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def launching(tmp_path):
    async with Launching(tmp_path) as begun:
        yield begun


@pytest.fixture(params=["sandbox", "no-sandbox"])
async def either(tmp_path, request):
    async with Launching(tmp_path, sandbox=request.param == "sandbox") as begun:
        yield begun


def assert_serves(path, data=BLOCK):
    with FrontEnd.connect(path) as front_end:
        disk = front_end.disk()
        assert disk.write(0, data) == 0
        assert disk.read(0, len(data)) == (0, data)


def assert_somebody_listens(path):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)


def assert_no_failure(log):
    """Nothing went wrong in a way that nobody expected, such as a module that is not there."""
    assert not [line for line in log.read_text().splitlines() if '"exception"' in line]


def name_of(pid):
    return Path(f"/proc/{pid}/comm").read_text().strip()


def descriptors(pid):
    """What a process has open, by the kernel's names."""
    return [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]


# ---- served ----


async def test_a_disk_is_served_by_a_process_of_its_own(either, path):
    launched = await either.serve("web", image=str(path))
    assert_serves(either.socket("web"))
    state = await asyncio.to_thread(call, either.control("web"), "GET", "/v1/export")
    assert (state["name"], state["image"]) == ("web", str(path))
    assert name_of(launched.pid) == "blkd:web"


async def test_sockets_of_a_guest_are_served(launching, tmp_path):
    uds = str(tmp_path / "host")
    await launching.serve("guest", "vsock", cid=[3], uds=[uds])
    with FrontEnd.connect(launching.socket("guest")) as front_end:
        driver = VsockDriver(front_end)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{uds}_80")
            listener.listen()
            listener.settimeout(LIMIT)
            guest = driver.connect(80)
            host, _ = listener.accept()
            with host:
                guest.write(b"ping")
                assert read_all(host, 4) == b"ping"


async def test_a_network_is_served(tmp_path):
    def facts():
        state = call(str(tmp_path / "net.control"), "GET", "/v1/export")
        return state["devices"][0]["facts"]

    def converse():
        with FrontEnd.connect(tmp_path / "net.sock") as front_end, namespace.packets() as host:
            driver = NetDriver.negotiate(front_end)
            driver.send(frame(b"to the host"))
            while not is_ours(host.recv(2048)):
                pass
            driver.offer()
            host.send(frame(b"to the guest"))
            assert driver.received()
            assert facts()["link_up"]
            namespace.ip("link set tap0 down")
            deadline = time.monotonic() + LIMIT
            while facts()["link_up"]:
                assert time.monotonic() < deadline

    with Namespace() as namespace:
        namespace.tap()
        launching = Launching(tmp_path)
        with namespace.inside():
            launching.start()
        try:
            await launching.serve("net", "net", tap="tap0", mtu=1400)
            await asyncio.to_thread(converse)
            assert_no_failure(launching.log)
        finally:
            await launching.__aexit__()


async def test_a_port_of_a_guest_is_forwarded_out_of_a_sandbox(launching):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        forward = f"80:127.0.0.1:{listener.getsockname()[1]}"
        await launching.serve("guest", "vsock", cid=[3], forward=[forward])
        with FrontEnd.connect(launching.socket("guest")) as front_end:
            guest = VsockDriver(front_end).connect(80)
            host, _ = listener.accept()
            with host:
                guest.write(b"ping")
                assert read_all(host, 4) == b"ping"


async def test_the_process_says_why_it_cannot_serve(launching, tmp_path):
    launched = await launching.launch("web", image=str(tmp_path / "missing.img"))
    with pytest.raises(ImageError, match=r"missing\.img: cannot be opened") as refused:
        await launched.ready(LIMIT)
    assert "blkd image create" in refused.value.hint
    ended = await launching.end()
    assert (ended.pid, os.waitstatus_to_exitcode(ended.status)) == (launched.pid, 1)


async def test_an_image_is_opened_only_where_it_may_lie(launching, path, tmp_path):
    (tmp_path / "images").mkdir()
    places = orders.Places(directories=(str(tmp_path / "images"),))
    launched = await launching.launch("web", image=str(path), places=places)
    with pytest.raises(ImageError, match="lies in none of the daemon's directories"):
        await launched.ready(LIMIT)
    inside = image(tmp_path / "images" / "disk.img")
    await launching.serve("web", image=str(inside), places=places)
    assert_serves(launching.socket("web"))


async def test_settings_are_checked_where_they_are_used(launching, path):
    launched = await launching.launch("web", image=str(path), queues=0)
    with pytest.raises(ConfigError, match="queues"):
        await launched.ready(LIMIT)


async def test_a_process_has_nothing_of_the_others(launching, tmp_path):
    images = [image(tmp_path / f"{name}.img") for name in "ab"]
    first, second = [await launching.serve(each.stem, image=str(each)) for each in images]
    opened = descriptors(second.pid)
    assert str(images[1]) in opened
    assert str(images[0]) not in opened
    assert not [each for each in opened if "pidfd" in each]
    # Both listening sockets and the log; the event loop's own pair beside them.
    own = [each for each in opened if each.startswith("socket:")]
    assert not set(own) & set(descriptors(launching.pid))
    assert not set(own) & set(descriptors(first.pid))


async def test_the_log_has_the_name_of_the_export(launching, path):
    launched = await launching.serve("web", image=str(path))
    os.kill(launched.pid, signal.SIGTERM)
    await launching.end()
    assert '"export":"web","event":"stopping"' in launching.log.read_text()


# ---- ended ----


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)],
    ids=lambda value: getattr(value, "name", None),
)
async def test_the_end_of_one_process_is_told_and_disturbs_no_other(
    launching, tmp_path, number, code
):
    first, _ = [
        await launching.serve(name, image=str(image(tmp_path / f"{name}.img"))) for name in "ab"
    ]
    with FrontEnd.connect(launching.socket("b")) as front_end:
        disk = front_end.disk()
        os.kill(first.pid, number)
        ended = await launching.end()
        assert (ended.pid, os.waitstatus_to_exitcode(ended.status)) == (first.pid, code)
        assert disk.write(0, BLOCK) == 0


async def test_who_connects_between_two_processes_is_served_by_the_second(launching, path):
    first = await launching.serve("web", image=str(path))
    os.kill(first.pid, signal.SIGKILL)
    await launching.end()
    with FrontEnd.connect(launching.socket("web")) as front_end:
        second = await launching.serve("web", image=str(path))
        assert front_end.disk().write(0, BLOCK) == 0
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(launching.socket("web"))
        assert unix_socket.peer(peer) == second.pid


async def test_a_process_that_nobody_waits_for_ends(launching, path):
    launched = await launching.launch("web", image=str(path))
    pidfd = launched.take_pidfd()
    launched.close()
    assert await asyncio.to_thread(has_ended, pidfd)
    os.close(pidfd)


# ---- the launcher ----


async def test_what_a_dead_launcher_has_started_goes_on(launching, path):
    launched = await launching.serve("web", image=str(path))
    with FrontEnd.connect(launching.socket("web")) as front_end:
        disk = front_end.disk()
        os.kill(launching.pid, signal.SIGKILL)
        async with asyncio.timeout(LIMIT):
            await launching.is_gone.wait()
        assert disk.write(0, BLOCK) == 0
    with pytest.raises(LaunchError, match="launcher has ended"):
        await launching.launch("web", image=str(path))
    os.kill(launched.pid, signal.SIGKILL)
    assert await asyncio.to_thread(has_ended, launched.pidfd)
    launching.start()
    await launching.serve("web", image=str(path))
    assert_serves(launching.socket("web"))


async def test_a_launcher_ends_with_its_supervisor_where_nothing_is_served(launching):
    pidfd = os.pidfd_open(launching.pid)
    launching._launcher.close()
    assert await asyncio.to_thread(has_ended, pidfd)
    os.close(pidfd)


async def test_a_launcher_without_orders_reports_what_ends_and_ends_itself(launching, path):
    launched = await launching.serve("web", image=str(path))
    launching._launcher.retire()
    os.kill(launched.pid, signal.SIGKILL)
    assert (await launching.end()).pid == launched.pid
    async with asyncio.timeout(LIMIT):
        await launching.is_gone.wait()


async def test_processes_upgraded_one_after_the_other_get_one_launcher():
    launchers = Launchers()
    try:
        first = launchers.begin()
        await launchers.renew(None)
        second = launchers.begin()
        assert second is not first
        await launchers.renew(7)
        assert launchers.begin() is second
        launchers._own.add(7)
        await launchers.renew(7)
        assert launchers.begin() is not second
    finally:
        for launcher in (*launchers._earlier, launchers.begin()):
            launcher.close()


@contextlib.contextmanager
def supervisor(directory):
    """A process that supervises one disk; the pids of the export's process and of the launcher."""
    command = [sys.executable, "-m", "tests.launched", str(directory)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process, *map(int, process.stdout.readline().split())
        finally:
            process.kill()


@pytest.mark.parametrize("last", ["export", "launcher"])
def test_what_a_dead_supervisor_has_started_goes_on(tmp_path, last):
    image(tmp_path / "disk.img")
    with supervisor(tmp_path) as (process, export, launcher), contextlib.ExitStack() as stack:
        pids = {"export": export, "launcher": launcher}
        pidfds = {name: os.pidfd_open(pid) for name, pid in pids.items()}
        for pidfd in pidfds.values():
            stack.callback(os.close, pidfd)
        with FrontEnd.connect(tmp_path / "disk.sock") as front_end:
            disk = front_end.disk()
            process.kill()
            process.wait()
            assert disk.write(0, BLOCK) == 0
            if last == "export":
                os.kill(launcher, signal.SIGKILL)
                assert has_ended(pidfds["launcher"])
                assert disk.write(0, BLOCK) == 0
        assert_serves(tmp_path / "disk.sock")  # its own, for nobody else has it open
        os.kill(export, signal.SIGKILL)
        assert has_ended(pidfds["export"])
        assert has_ended(pidfds["launcher"])


@pytest.mark.parametrize(
    ("data", "fds"),
    [
        pytest.param(b"{}", 0, id="no-order"),
        pytest.param(b"\xff" * 100, 4, id="no-text"),
        pytest.param(b"x" * (orders.MAX_DOCUMENT + 1), 0, id="too-long"),
        pytest.param(orders.encode(orders.Ended(1, 0)), 0, id="a-report"),
        pytest.param(orders.encode(orders.Take(name="a", control="/c")), 1, id="few-descriptors"),
    ],
)
def test_a_launcher_ends_where_its_supervisor_talks_nonsense(data, fds):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "blkd.daemon.launcher", str(theirs.fileno())]
    with (
        ours,
        subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        theirs.close()
        socket.send_fds(ours, [data], [0] * fds)
        assert process.wait(LIMIT) == 0
        assert '"event":"order refused"' in process.stderr.read()
        assert select.select([ours], [], [], LIMIT)[0]
        assert ours.recv(1) == b""


async def test_an_export_lends_its_sockets_to_another_supervisor(launching, path):
    launched = await launching.serve("web", image=str(path))
    lent = await asyncio.to_thread(borrow, launching.control("web"))
    os.close(lent.statistics)
    control, listener = lent.sockets
    os.kill(launched.pid, signal.SIGKILL)
    await launching.end()
    with control, listener, socket.socket(socket.AF_UNIX) as peer:
        assert control.getsockname() == launching.control("web")
        peer.connect(launching.socket("web"))
        listener.accept()[0].close()


# ---- another process takes over ----


async def test_an_export_goes_on_in_a_process_of_another_launcher(either, path):
    old = await either.serve("web", image=str(path))
    with FrontEnd.connect(either.socket("web")) as front_end:
        disk = front_end.disk()
        assert disk.write(0, BLOCK) == 0
        either.start()
        new = await either.take("web")
        state = msgspec.json.decode(await new.ready(LIMIT))
        assert state["front_end"] is not None
        assert (state["sandbox"] is not None) == either.sandbox.on
        assert await asyncio.to_thread(has_ended, old.pidfd)
        assert disk.read(0, len(BLOCK)) == (0, BLOCK)
        assert disk.write(4096, BLOCK) == 0
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(either.control("web"))
            assert unix_socket.peer(peer) == new.pid
    os.kill(new.pid, signal.SIGTERM)
    assert await asyncio.to_thread(has_ended, new.pidfd)
    assert_somebody_listens(either.socket("web"))


async def test_what_cannot_be_taken_over_is_served_on(launching, path):
    old = await launching.serve("web", image=str(path))
    await asyncio.to_thread(call, launching.control("web"), "POST", "/v1/export/pause")
    new = await launching.take("web")
    os.kill(new.pid, signal.SIGKILL)
    with pytest.raises(LaunchError, match="ended before it served"):
        await new.ready(LIMIT)
    await asyncio.to_thread(call, launching.control("web"), "POST", "/v1/export/resume")
    assert not has_ended(old.pidfd, 0)
    assert_serves(launching.socket("web"))


async def test_nobody_takes_over_what_nobody_serves(launching):
    launched = await launching.take("web")
    with pytest.raises(SocketError, match="nobody answers"):
        await launched.ready(LIMIT)


# ---- what a confined process can still do ----


async def test_every_call_of_the_api_is_answered_in_a_sandbox(launching, path):
    launched = await launching.serve("web", image=str(path))
    control = launching.control("web")

    def ask(method, target, body=None):
        return call(control, method, f"/v1/export{target}", body)

    def converse():
        with FrontEnd.connect(launching.socket("web")) as front_end:
            assert front_end.disk().write(0, BLOCK) == 0
            assert ask("GET", "")["sandbox"]["seccomp"]
            assert ask("GET", "/stats")["total"]["writes"] == 1
            assert ask("POST", "/pause", {"deadline": 1})["drained"]
            assert ask("POST", "/resume")["state"] == "serving"
        size = ask("GET", "")["size"]
        grown = ask("POST", "/resize", {"size": 2 * size})
        assert (grown["size"], grown["previous"]) == (2 * size, size)
        for target, body in (("/resize", {"size": 512}), ("/nowhere", None), ("/pause", 7)):
            with pytest.raises(ControlError):
                ask("POST", target, body)
        ask("POST", "/stop")

    await asyncio.to_thread(converse)
    assert (await launching.end()).status == 0
    assert path.stat().st_size == 32 << 20
    assert_no_failure(launching.log)
    launched.close()


async def test_a_front_end_that_breaks_the_protocol_does_not_end_a_confined_process(
    launching, path
):
    await launching.serve("web", image=str(path))
    for data in (b"\xff" * 64, b"", struct.pack("=III", 1, 1, 1 << 30)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(launching.socket("web"))
            sock.sendall(data)
    assert_serves(launching.socket("web"))
    assert_no_failure(launching.log)


async def test_growth_is_noticed_by_a_process_that_may_not_read_the_image_anew(tmp_path):
    path = image(tmp_path / "disk.img")
    path.chmod(0o600)
    async with Launching(tmp_path, user=61184) as launching:
        await launching.serve("web", image=str(path))

        def see():
            with FrontEnd.connect(launching.socket("web")) as front_end:
                front_end.disk()
                front_end.config(0, 60)
                os.truncate(path, 4 << 20)
                deadline = time.monotonic() + LIMIT
                while front_end.capacity() != (4 << 20) // 512:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)

        await asyncio.to_thread(see)
        assert "looked at by the clock" not in launching.log.read_text()


async def test_an_image_is_locked_for_an_incoming_guest_by_a_confined_process(tmp_path):
    path = image(tmp_path / "disk.img")
    path.chmod(0o600)
    async with Launching(tmp_path, user=61184) as launching:
        await launching.serve("web", image=str(path), incoming=True)
        state = await asyncio.to_thread(call, launching.control("web"), "GET", "/v1/export")
        assert not state["image_locked"]
        assert_serves(launching.socket("web"))
        state = await asyncio.to_thread(call, launching.control("web"), "GET", "/v1/export")
        assert state["image_locked"]


async def test_a_worker_that_cannot_start_is_said(tmp_path):
    """Where the host lets nobody raise the limit; else the disk is served."""
    async with Launching(tmp_path, user=61999) as begun:
        resource.prlimit(begun.pid, resource.RLIMIT_MEMLOCK, (4096, 4096))
        launched = await begun.launch(
            "web", image=str(image(tmp_path / "a.img")), queues=8, workers=8
        )
        with contextlib.suppress(DataPlaneError):
            await launched.ready(LIMIT)
