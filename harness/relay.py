# SPDX-License-Identifier: Apache-2.0
"""Stands between the two processes of a live upgrade, and looks at what they say or changes it.

Like the scripted front end it shares nothing with blkd: the format is written down again.
"""

import array
import contextlib
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

HEADER = struct.Struct("=II")  # bytes of the document, descriptors
BATCH = 253  # descriptors
END_OF_HEAD = b"\r\n\r\n"
LIMIT = 20.0  # seconds


@dataclass
class Message:
    """One message; what a test changes in it is passed on."""

    document: dict[str, Any]
    fds: list[int]

    @property
    def name(self) -> str:
        return str(self.document["message"])

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = self.document["content"]
        return content

    def encode(self) -> bytes:
        data = json.dumps(self.document).encode()
        return HEADER.pack(len(data), len(self.fds)) + data


class Cut(Exception):
    """Raised by a test's hook: neither side receives anything more."""


class Relay:
    """Listens at `path` for a taker and speaks for it to the giver at `control`.

    `hook` is given each message before it goes on, and may change it or raise Cut.
    """

    def __init__(self, path: Path, control: Path, hook: Callable[[Message], None]) -> None:
        self.path, self._control, self._hook = path, control, hook
        self.seen: list[str] = []
        """The messages that came by, as far as they went on."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._listener.settimeout(LIMIT)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join()
        self._listener.close()

    def join(self) -> None:
        """Wait until all that was said has gone on, and one side has closed."""
        self._thread.join(LIMIT)
        assert not self._thread.is_alive(), "the two still talk"

    def _run(self) -> None:
        with self._listener.accept()[0] as taker, socket.socket(socket.AF_UNIX) as giver:
            giver.connect(str(self._control))
            giver.sendall(head(taker))
            taker.sendall(head(giver))
            with contextlib.suppress(Cut, ConnectionError):
                while self._pass_on(taker, giver):
                    pass

    def _pass_on(self, taker: socket.socket, giver: socket.socket) -> bool:
        ready, _, _ = select.select([taker, giver], [], [], LIMIT)
        for source, sink in ((taker, giver), (giver, taker)):
            if source in ready:
                message = receive(source)
                if message is None:
                    return False
                try:
                    self._hook(message)
                    send(sink, message)
                    self.seen.append(message.name)
                finally:
                    for fd in message.fds:
                        os.close(fd)
        return bool(ready)


def head(sock: socket.socket) -> bytes:
    """A request or an answer up to its empty line, and nothing behind that."""
    data = b""
    while not data.endswith(END_OF_HEAD):
        piece = sock.recv(1)
        if not piece:
            raise ConnectionError(data)
        data += piece
    return data


def receive(sock: socket.socket) -> Message | None:
    """The next message; None once the other side has closed."""
    start = _exactly(sock, HEADER.size)
    if not start:
        return None
    length, descriptors = HEADER.unpack(start)
    document = json.loads(_exactly(sock, length))
    fds: list[int] = []
    for _ in range(-(-descriptors // BATCH)):
        _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(BATCH * 4), socket.MSG_CMSG_CLOEXEC)
        for _, _, data in ancillary:
            fds += array.array("i", data)
    assert len(fds) == descriptors
    return Message(document, fds)


def send(sock: socket.socket, message: Message) -> None:
    sock.sendall(message.encode())
    for at in range(0, len(message.fds), BATCH):
        socket.send_fds(sock, [b"\0"], message.fds[at : at + BATCH])


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return data
