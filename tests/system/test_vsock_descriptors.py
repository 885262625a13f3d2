# SPDX-License-Identifier: Apache-2.0
"""Host programs that send descriptors along, whose close waits for somebody: nobody waits for it.

Each test is of the kernel as it is, and of one that cannot refuse descriptors (before Linux 6.16).
"""

import contextlib
import os
import signal
import socket
import struct

import pytest

from harness.frontend import FrontEnd
from harness.vsock import EOM, SEQPACKET, STREAM, Op, VsockDriver
from tests.vsock_host import Vsock, accepted, read_all

LINGER_SECONDS = 60
"""How long the close of a socket of `lingering` takes; waits of the tests are shorter."""
OF_OLD_KERNEL = """
import socket
from blkd.host import unix_socket
unix_socket.SO_PASSRIGHTS = 9999  # no option
"""


@pytest.fixture(params=["refused", "looked for"])
def vsock(tmp_path, request, monkeypatch):
    if request.param == "looked for":
        (tmp_path / "sitecustomize.py").write_text(OF_OLD_KERNEL)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Vsock(tmp_path) as process:
        process.ready()
        yield process


@pytest.fixture
def split(vsock):
    with FrontEnd.connect(vsock.socket) as front_end:
        yield VsockDriver(front_end)


@contextlib.contextmanager
def lingering():
    """The descriptor of a TCP socket whose last close waits, taken by who closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock = socket.create_connection(server.getsockname())
        with server.accept()[0]:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(bytes(65536))
            sock.setblocking(True)
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_SECONDS)
            )
            yield sock.detach()


@contextlib.contextmanager
def stopped(vsock):
    """The process takes nothing for a while."""
    os.kill(vsock.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, vsock.process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        os.kill(vsock.process.pid, signal.SIGCONT)


def send_away(sock, data, fd, flags=0):
    """Send a descriptor, if it is taken, and have no other of the same file."""
    with socket.socket(fileno=fd) as sent:
        try:
            socket.send_fds(sock, [data], [fd], flags)
        except PermissionError:
            sent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


def still_carries(guest, host):
    guest.write(b"there")
    assert read_all(host, 5) == b"there"
    host.sendall(b"back")
    assert guest.read(4) == b"back"


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["in turn", "urgent"])
def test_what_comes_with_the_data_of_a_stream(split, vsock, flags):
    with (
        lingering() as fd,
        accepted(split, vsock) as (_, host),
        accepted(split, vsock, port=81, src_port=1025) as others,
    ):
        with stopped(vsock):
            host.sendall(b"plain")
            send_away(host, b"x", fd, flags)
        still_carries(*others)
        assert vsock.end() == 0


def test_what_comes_with_a_message(split, vsock):
    with (
        lingering() as fd,
        accepted(split, vsock, kind=SEQPACKET) as (_, host),
        accepted(split, vsock, port=81, src_port=1025) as others,
    ):
        with stopped(vsock):
            send_away(host, b"", fd)
        still_carries(*others)
        assert vsock.end() == 0


def test_what_is_never_read(split, vsock):
    with (
        lingering() as fd,
        accepted(split, vsock) as (guest, host),
        accepted(split, vsock, port=81, src_port=1025) as others,
    ):
        host.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                host.send(bytes(65536))
        split.is_silent()
        host.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        host.settimeout(10)
        send_away(host, b"x", fd)
        guest.send(Op.RST)
        still_carries(*others)
        assert vsock.end() == 0


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_what_comes_with_a_line(split, vsock, kind):
    with lingering() as fd, accepted(split, vsock) as others, vsock.connect(kind) as program:
        with stopped(vsock):
            send_away(program, b"CONNECT 5\n", fd)
        still_carries(*others)
        assert vsock.end() == 0


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET])
def test_data_without_descriptors_arrive_whole(split, vsock, kind):
    with accepted(split, vsock, kind=kind) as (guest, host):
        if kind == SEQPACKET:
            for message in (b"one", bytes(70_000), b"three"):
                host.sendall(message)
                assert guest.read_message() == (message, EOM)
            return
        data = os.urandom(1 << 20)
        host.setblocking(False)
        sent, received = 0, b""
        while len(received) < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += host.send(data[sent:])
            received += guest.read(min(4096, sent - len(received)))
        assert received == data
