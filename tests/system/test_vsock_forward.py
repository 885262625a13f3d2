# SPDX-License-Identifier: Apache-2.0
"""A guest's connections to some ports of the host go elsewhere."""

import socket
import struct

import pytest

from harness.daemon import run
from harness.frontend import FrontEnd
from harness.vsock import SEQPACKET, VsockDriver
from tests.vsock_host import Vsock, read_all


def ping_pong(guest, listener):
    host, _ = listener.accept()
    with host:
        guest.write(b"ping")
        assert read_all(host, 4) == b"ping"
        host.sendall(b"pong")
        assert guest.read(4) == b"pong"
        guest.close()
        assert host.recv(1) == b""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_is_forwarded_to_loopback(tmp_path, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        with Vsock(tmp_path, "--forward", f"8080:{shown}:{port}", host=False) as process:
            process.ready()
            with FrontEnd.connect(process.socket) as front_end:
                driver = VsockDriver(front_end)
                ping_pong(driver.connect(8080), listener)
                messages = driver.request(8080, kind=SEQPACKET)
                messages.wait(lambda: messages.is_reset)
                other = driver.request(8081)
                other.wait(lambda: other.is_reset)


def test_a_port_is_forwarded_to_a_unix_socket(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "there"))
        listener.listen()
        listener.settimeout(10)
        with Vsock(tmp_path, "--forward", f"22:unix:{tmp_path / 'there'}") as process:
            process.ready()
            with FrontEnd.connect(process.socket) as front_end:
                ping_pong(VsockDriver(front_end).connect(22), listener)


def test_a_peer_that_breaks_the_connection_is_seen(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Vsock(tmp_path, "--forward", f"1:127.0.0.1:{port}") as process:
            process.ready()
            with FrontEnd.connect(process.socket) as front_end:
                guest = VsockDriver(front_end).connect(1)
                host, _ = listener.accept()
                host.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                host.close()  # a reset of TCP's
                guest.wait(lambda: guest.shut == 3)


@pytest.mark.parametrize(
    "forward",
    ["80:192.0.2.1:80", "80:0.0.0.0:80", "80:example.org:80", "x:127.0.0.1:80", "80:127.0.0.1:0",
     "80:unix:", "80:127.0.0.1:65536", "4294967295:127.0.0.1:80", "80:[::]:80"],
)  # fmt: skip
def test_what_is_not_of_this_host_is_refused(tmp_path, forward):
    done = run("vsock", "--cid", 3, "--socket", tmp_path / "s", "--forward", forward)
    assert done.returncode == 2
    assert "forward" in done.stderr
