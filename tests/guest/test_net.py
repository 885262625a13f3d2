# SPDX-License-Identifier: Apache-2.0
"""A guest's network through blkd: in a namespace of its own, with a TAP whose host end is ours."""

import asyncio
import contextlib
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from harness.guest import Net
from harness.initramfs import Extra, build, program
from harness.network import Namespace
from harness.process import kill, spawn
from harness.server import BLKD, Server

HOST, GUEST = "10.1.0.1", "10.1.0.2"
MAC = "52:54:00:12:34:56"
UP = f"ip link set eth0 up; ip address add {GUEST}/24 dev eth0"
PING = f"ping -c 3 -w 20 {HOST}"
PORT = 5000
MIB = 1 << 20


@pytest.fixture
def machine_with_iperf(machine):
    """What guests are made of, with iperf3."""
    return replace(machine, initramfs=build(machine.kernel, Extra("net", (program("iperf3"),))))


@pytest.fixture
def namespace():
    with Namespace() as made:
        yield made


def directory(parent, name):
    made = parent / name
    made.mkdir()
    return made


@contextlib.asynccontextmanager
async def serve_net(namespace, directory: Path, *options, tap="tap0"):
    """`blkd net` in a namespace; at the end it is killed if it still runs."""
    with (directory / "log").open("w+b") as log:
        command = (*namespace.entering, BLKD, "net", "--tap", tap, *options)
        server = Server(command, directory, log)
        try:
            await server.start()
            yield server
        finally:
            await server.kill()


@contextlib.asynccontextmanager
async def booted(machine, *devices):
    """A guest on its network; at the end its kernel must not have logged one error."""
    async with machine.boot(*devices, cpus=2) as guest:
        await guest.run(UP)
        yield guest
        assert await guest.kernel_errors() == []


async def until(condition):
    """Wait until it holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


async def counts(server):
    """The counters of each vring, by its number."""
    return {ring["ring"]: ring["counts"] for ring in (await server.call("stats"))["rings"]}


@contextlib.asynccontextmanager
async def iperf_server(namespace):
    process = await spawn(*namespace.entering, "iperf3", "-s", stdout=asyncio.subprocess.DEVNULL)
    try:
        yield
    finally:
        await kill(process)


async def iperf(guest, *options):
    """The bytes that have arrived."""
    words = " ".join(map(str, options))
    out = json.loads(await guest.run(f"iperf3 -c {HOST} -t 1 -J {words}", limit=60))
    end = out["end"]
    return (end["sum_received"] if "sum_received" in end else end["sum"])["bytes"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("pairs", "packed"),
    [
        pytest.param(1, False, id="one-pair"),
        pytest.param(2, False, id="two-pairs"),
        pytest.param(1, True, id="packed"),
    ],
)
async def test_tcp_and_udp_go_both_ways(machine_with_iperf, namespace, tmp_path, pairs, packed):
    namespace.tap(address=f"{HOST}/24")
    async with (
        iperf_server(namespace),
        serve_net(namespace, tmp_path, "--queues", pairs) as server,
        booted(machine_with_iperf, Net(server.socket, packed=packed, pairs=pairs)) as guest,
    ):
        assert "3 packets received" in await guest.run(PING)
        [device] = (await server.call("show"))["devices"]
        assert device["facts"]["pairs_attached"] == pairs
        streams = ("-P", 2 * pairs)
        for options in ((), ("-R",), ("-u", "-b", "10M"), ("-u", "-b", "10M", "-R")):
            assert await iperf(guest, *options, *streams) > MIB
        seen = await counts(server)
        for pair in range(pairs):
            assert seen[2 * pair]["packets"] > 0
            assert seen[2 * pair + 1]["packets"] > 0
        # A packet of a large segment stands for many: offloads are at work.
        assert (
            max(seen[2 * pair]["bytes"] / seen[2 * pair]["packets"] for pair in range(pairs)) > 3000
        )
        for ring in seen.values():
            assert ring["malformed"] == ring["refused"] == ring["oversized"] == 0


@pytest.mark.timeout(150)
async def test_big_frames_pass_whole(machine, namespace, tmp_path):
    namespace.tap(address=f"{HOST}/24", mtu=9000)
    async with (
        serve_net(namespace, tmp_path) as server,
        booted(machine, Net(server.socket, mtu=9000)) as guest,
    ):
        assert await guest.run("cat /sys/class/net/eth0/mtu") == "9000\n"
        assert "3 packets received" in await guest.run(f"{PING} -s 8000")
        seen = await counts(server)
        assert seen[0]["bytes"] / seen[0]["packets"] > 1500


@pytest.mark.timeout(150)
async def test_a_link_goes_down_and_up(machine, namespace, tmp_path):
    namespace.tap(address=f"{HOST}/24")
    async with (
        serve_net(namespace, tmp_path) as server,
        booted(machine, Net(server.socket)) as guest,
    ):
        await guest.run(PING)
        namespace.ip("link set tap0 down")
        await guest.run(f"! ping -c 1 -W 1 {HOST}")
        assert (await counts(server))[1]["refused"] > 0
        namespace.ip("link set tap0 up")
        await guest.run(PING)
        for up in (False, True):
            await guest.qmp.execute("set_link", name="net-device0", up=up)
            await guest.until(f"grep -q {int(up)} /sys/class/net/eth0/carrier")
        await guest.run(PING)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.timeout(240)
async def test_connections_outlive_a_killed_blkd(machine, namespace, tmp_path):
    namespace.tap(address=f"{HOST}/24")
    data = noise(24 * MIB)
    async with (
        serve_net(namespace, tmp_path) as server,
        booted(machine, Net(server.socket)) as guest,
        asyncio.TaskGroup() as tasks,
    ):
        half = asyncio.Event()
        back = asyncio.Event()

        async def send(_reader, writer):
            for at in range(0, len(data), MIB):
                writer.write(data[at : at + MIB])
                await writer.drain()
                if at == 8 * MIB:
                    half.set()
                    await back.wait()
            writer.close()

        with namespace.inside():
            listener = await asyncio.start_server(send, HOST, PORT)
        async with listener:
            sum_of_all = tasks.create_task(guest.run(f"nc {HOST} {PORT} | sha256sum", limit=120))
            await half.wait()
            for _ in range(2):
                await server.kill()
                for path in (server.socket, server.control):
                    path.unlink(missing_ok=True)
                await server.start()
                back.set()
                await guest.run(f"until ping -c 1 -W 1 {HOST}; do :; done", limit=60)
            digest = (await sum_of_all).split()[0]
        assert digest == hashlib.sha256(data).hexdigest()


@pytest.mark.timeout(240)
async def test_a_guest_that_migrates_is_found_where_it_goes(machine, namespace, tmp_path):
    namespace.ip("link add br0 type bridge")
    for tap in ("tap0", "tap1"):
        namespace.tap(tap)
        namespace.ip(f"link set {tap} master br0")
    namespace.ip("link set br0 up")
    namespace.ip(f"address add {HOST}/24 dev br0")

    def place():
        """The TAP behind which the bridge knows the guest."""
        known = json.loads(namespace.run("bridge", "-j", "fdb", "show", "br", "br0"))
        return [entry["ifname"] for entry in known if entry["mac"] == MAC]

    async with (
        serve_net(namespace, directory(tmp_path, "here")) as here,
        serve_net(namespace, directory(tmp_path, "there"), tap="tap1") as there,
        machine.boot(Net(here.socket, mac=MAC), cpus=2) as guest,
        machine.incoming(Net(there.socket, mac=MAC), cpus=2) as moved,
    ):
        await guest.run(f"{UP}; {PING}")
        assert place() == ["tap0"]
        load = asyncio.create_task(guest.run(f"ping -c 400 -i 0.05 -w 60 {HOST}", limit=90))
        await guest.migrate(moved)
        await moved.take_over(guest)
        await until(lambda: place() == ["tap1"])
        await load
        assert "3 packets received" in await moved.run(PING)
        assert await moved.kernel_errors() == []
