# SPDX-License-Identifier: Apache-2.0
"""A network namespace with a TAP in it: nothing of the host's own network is touched."""

import ctypes
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Self

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
KEPT = 8 << 20
"""Bytes of frames that nobody has read, with what the kernel needs for them."""


class Namespace:
    """A network namespace of its own; leaving the context ends it, and all that is in it."""

    def __init__(self) -> None:
        # It reads until we close the pipe, and so it ends with us.
        command = ["unshare", "--net", "sh", "-c", "echo; read _"]
        self._keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._keeper.stdout
        self._keeper.stdout.readline()
        self.path = Path(f"/proc/{self._keeper.pid}/ns/net")
        self.ip("link set lo up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.communicate()

    @property
    def entering(self) -> list[str]:
        """The words before a command that is to run in it."""
        return ["nsenter", f"--net={self.path}", "--"]

    def run(self, *command: object) -> str:
        """What a command in the namespace prints; it must succeed."""
        words = [*self.entering, *map(str, command)]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def ip(self, command: str) -> str:
        """What a command of `ip` prints."""
        return self.run("ip", *command.split())

    def tap(
        self,
        name: str = "tap0",
        *,
        mtu: int = 1500,
        address: str | None = None,
        multi_queue: bool = True,
    ) -> None:
        """Make a TAP that outlives who has it open."""
        kind = " multi_queue" if multi_queue else ""
        self.ip(f"tuntap add {name} mode tap vnet_hdr{kind}")
        self.ip(f"link set {name} mtu {mtu}")
        # What the kernel says of its own accord would stand between what a test sends.
        self.run("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
        if address:
            self.ip(f"address add {address} dev {name}")
        self.ip(f"link set {name} up")

    def inside(self) -> "Inside":
        """A context in which this thread is in the namespace: sockets made there stay in it."""
        return Inside(self.path)

    def packets(self, interface: str = "tap0", timeout: float = 5) -> socket.socket:
        """A socket that sends and receives whole frames at an interface; it is the caller's."""
        with self.inside():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, KEPT)
        sock.bind((interface, ETH_P_ALL))
        sock.settimeout(timeout)
        return sock


class Inside:
    """Has this thread in another network namespace for a while."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own = Path(f"/proc/self/task/{threading.get_native_id()}/ns/net")

    def __enter__(self) -> None:
        self._home = os.open(self._own, os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
        finally:
            os.close(there)

    def __exit__(self, *_: object) -> None:
        try:
            _enter(self._home)
        finally:
            os.close(self._home)


def _enter(fd: int) -> None:
    """Have this thread in the namespace that `fd` stands for."""
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
