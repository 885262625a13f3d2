# SPDX-License-Identifier: Apache-2.0
"""Sockets of a Linux guest under QEMU's vhost-user-vsock: socat both ways, and between guests."""

import asyncio
import contextlib
import hashlib
import random
import socket
from dataclasses import replace

import pytest

from harness.guest import Vsock
from harness.initramfs import Extra, build, program
from tests.vsock_host import Vsock as Process

MIB = 1 << 20
DATA = random.Random(9).randbytes(4 * MIB)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def machine(machine):
    """One whose guests have socat."""
    return replace(machine, initramfs=build(machine.kernel, Extra("socat", (program("socat"),))))


@contextlib.asynccontextmanager
async def served(directory, *options, cids=(3,)):
    """`blkd vsock`, ready."""
    with Process(directory, *options, cids=cids) as process:
        await asyncio.to_thread(process.ready)
        yield process


async def receive_all(listener):
    """All that the one peer of a listener sends until it has no more."""
    peer, _ = await asyncio.to_thread(listener.accept)
    with peer:
        data = bytearray()
        while piece := await asyncio.to_thread(peer.recv, MIB):
            data += piece
    return bytes(data)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_a_guest_and_the_host_reach_each_other(boot, tmp_path, packed):
    async with served(tmp_path) as process, boot(Vsock(process.socket, packed), cpus=2) as guest:
        # The guest sends and reads its own digest.
        with process.listen(1000) as listener:
            receiving = asyncio.create_task(receive_all(listener))
            digest = await guest.run(
                "head -c 4194304 /dev/urandom >/tmp/data; sha256sum </tmp/data;"
                " socat -u OPEN:/tmp/data VSOCK-CONNECT:2:1000"
            )
            data = await receiving
            assert hashlib.sha256(data).hexdigest() == digest.split()[0]
        # A program of the host sends.
        listening = asyncio.create_task(guest.run("socat -u VSOCK-LISTEN:2000 STDOUT | sha256sum"))
        await guest.until("pidof socat")
        host = await asyncio.to_thread(connect, process, 2000)
        with host:
            await asyncio.to_thread(host.sendall, DATA)
            host.shutdown(socket.SHUT_WR)
            assert (await listening).split()[0] == DIGEST


def connect(process, port):
    """A host program's socket, once the guest listens."""
    for _ in range(100):
        host = process.ask(port)
        if host.recv(64).startswith(b"OK "):
            return host
        host.close()
    raise AssertionError("the guest never listened")


@pytest.mark.timeout(200)
async def test_two_guests_reach_each_other(boot, tmp_path):
    async with served(tmp_path, cids=(3, 4)) as process:
        one, other = (Vsock(path) for path in process.paths.values())
        async with boot(one, cpus=2) as asking, boot(other, cpus=2) as answering:
            listening = asyncio.create_task(
                answering.run("socat -u VSOCK-LISTEN:7 STDOUT | sha256sum")
            )
            await answering.until("pidof socat")
            sent = await asking.run(
                "head -c 4194304 /dev/urandom >/tmp/data; sha256sum </tmp/data;"
                " until socat -u OPEN:/tmp/data VSOCK-CONNECT:4:7; do sleep 0.1; done"
            )
            assert (await listening).split()[0] == sent.split()[0]
