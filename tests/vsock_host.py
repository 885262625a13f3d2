# SPDX-License-Identifier: Apache-2.0
"""`blkd vsock` as a process, and the host programs at its sockets."""

import contextlib
import socket
import time
from collections.abc import Iterator

from harness.daemon import Serving
from harness.vsock import SEQPACKET

CID = 3


class Vsock(Serving):
    """`blkd vsock`, with one guest unless said; `uds` and `socket` are the first one's."""

    def __init__(self, directory, *options, cids=(CID,), host=True):
        self.paths = {cid: directory / f"guest-{cid}.sock" for cid in cids}
        self.uds = directory / f"host-{cids[0]}"
        self.socket = self.paths[cids[0]]
        self.control = directory / "control.sock"
        command = ["blkd", "vsock", "--control", self.control, "--json", *options]
        for cid, path in self.paths.items():
            command += ["--cid", cid, "--socket", path]
            command += ["--uds", directory / f"host-{cid}"] if host else []
        super().__init__(command, directory / "log")

    def connect(self, kind=socket.SOCK_STREAM):
        """A host program's socket, connected to where it can ask for a port."""
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.settimeout(10)
        sock.connect(str(self.uds) + (".seqpacket" if kind == socket.SOCK_SEQPACKET else ""))
        return sock

    def ask(self, port, kind=socket.SOCK_STREAM):
        sock = self.connect(kind)
        sock.sendall(b"CONNECT %d\n" % port)
        return sock

    def listen(self, port, kind=socket.SOCK_STREAM, backlog=128):
        """A host program that listens at a port."""
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.settimeout(10)
        sock.bind(f"{self.uds}_{port}")
        sock.listen(backlog)
        return sock

    def connections(self):
        """Of all guests."""
        return sum(each["facts"]["connections"] for each in self.call("show")["devices"])

    def wait_for_connections(self, count, timeout=10):
        deadline = time.monotonic() + timeout
        while (now := self.connections()) != count:
            assert time.monotonic() < deadline, f"{now} connections, not {count}"


@contextlib.contextmanager
def accepted(driver, vsock, port=80, **how) -> Iterator[tuple]:
    """A stream that the guest has opened: the driver's side and the host program's."""
    kind = socket.SOCK_SEQPACKET if how.get("kind") == SEQPACKET else socket.SOCK_STREAM
    with vsock.listen(port, kind) as listener:
        guest = driver.connect(port, **how)
        host, _ = listener.accept()
        host.settimeout(10)
        with host:
            yield guest, host


def read_all(sock, count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, f"the end after {len(data)} bytes of {count}"
        data += piece
    return data


def echo_all(sock):
    while data := sock.recv(1 << 18):
        sock.sendall(data)
