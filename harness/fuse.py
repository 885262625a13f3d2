# SPDX-License-Identifier: Apache-2.0
"""A FUSE file system with one file, which fails or keeps silent on order.

It speaks just as much of the protocol (include/uapi/linux/fuse.h) as it takes to open, map, read,
write, measure and close the file.  The kernel caches no attributes, so each fstat comes here.
"""

import contextlib
import ctypes
import errno
import os
import select
import struct
import threading
import time
from pathlib import Path
from typing import Final, Self

import pytest

LOOKUP, FORGET, GETATTR, SETATTR, OPEN = 1, 2, 3, 4, 14
READ, WRITE, STATFS, RELEASE, FLUSH, INIT = 15, 16, 17, 18, 25, 26
INTERRUPT, BATCH_FORGET = 36, 42
UNANSWERED: Final = {FORGET, INTERRUPT, BATCH_FORGET}

IN_HEADER = struct.Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
OUT_HEADER = struct.Struct("=IiQ")  # length, error, unique
READ_IN = struct.Struct("=QQI")  # handle, offset, size
WRITE_IN = struct.Struct("=QQI20x")  # the same; the data follows
SETATTR_IN = struct.Struct("=IIQQ")  # what is valid, padding, handle, size
ATTR = struct.Struct("=6Q10I")
ROOT, FILE = 1, 2
SIZE_IS_VALID = 1 << 3
MNT_FORCE, MNT_DETACH = 1, 2
REQUEST_BYTES = 1 << 21

ANSWERS: Final = {
    # version, read ahead, flags, requests in the background, largest write, granularity, pages
    INIT: struct.pack("=IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 8, 8, 1 << 17, 1, 0, 0, 0),
    OPEN: bytes(16),
    STATFS: struct.pack("=5Q3I28x", 1 << 20, 1 << 20, 1 << 20, 9, 9, 4096, 255, 4096),
    RELEASE: b"",
    FLUSH: b"",
}

_libc = ctypes.CDLL(None, use_errno=True)


class Fuse:
    """A mounted file system; `file` is the path of its one file."""

    def __init__(self, place: Path, size: int) -> None:
        self.place, self.file = place, place / "file"
        self.data = bytearray(size)
        self.errors: dict[int, int] = {}
        """The errno that requests are answered with, by opcode; after an ENOSYS to one, the kernel
        sends no FLUSH any more."""
        self.silent: set[int] = set()
        """The opcodes of requests that get no answer before the context is left."""
        self.seen: list[int] = []
        """The opcodes of all requests so far, of the victim only if there is one."""
        self.victim: int | None = None
        """The process whose requests are failed or not answered; None for all."""
        self._reads = True
        self._ended = False

    def __enter__(self) -> Self:
        self.place.mkdir()
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"fuse", bytes(self.place), b"fuse", 0, options.encode()) != 0:
            error = ctypes.get_errno()
            os.close(self._device)
            pytest.skip(f"FUSE cannot be mounted here: {os.strerror(error)}")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
        _libc.umount2(bytes(self.place), MNT_DETACH)
        self._ended = True
        self._thread.join(10)
        os.close(self._device)

    def abort(self) -> None:
        """Be gone: whoever still waits for an answer gets an error instead."""
        _libc.umount2(bytes(self.place), MNT_FORCE)

    def stop_reading(self) -> None:
        """Be like a server that was stopped: requests stay in the kernel, and can be killed."""
        self._reads = False

    def wait_for(self, opcode: int, limit: float = 10) -> None:
        """Wait until a request of this kind has come."""
        deadline = time.monotonic() + limit
        while opcode not in self.seen:
            assert time.monotonic() < deadline, f"no request {opcode} in {self.seen}"
            time.sleep(0.005)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        while not self._ended:
            if not poll.poll(20) or not self._reads:
                continue
            try:
                request = os.read(self._device, REQUEST_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return  # unmounted
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        _, opcode, unique, node, _, _, thread, _ = IN_HEADER.unpack_from(request)
        strikes = self.victim is None or Path(f"/proc/{self.victim}/task/{thread}").exists()
        if strikes:
            self.seen.append(opcode)
        if opcode in UNANSWERED or (strikes and opcode in self.silent):
            return
        error, answer = self.errors.get(opcode, 0) if strikes else 0, b""
        if not error:
            error, answer = self._carry_out(opcode, node, request[IN_HEADER.size :])
        head = OUT_HEADER.pack(OUT_HEADER.size + len(answer), -error, unique)
        with contextlib.suppress(OSError):  # the caller has been killed
            os.write(self._device, head + answer)

    def _carry_out(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        if opcode == LOOKUP and body.rstrip(b"\0") != b"file":
            return errno.ENOENT, b""
        if opcode == LOOKUP:
            return 0, struct.pack("=QQQQII", FILE, 0, 0, 0, 0, 0) + self._attributes(FILE)
        if opcode == SETATTR:
            valid, _, _, size = SETATTR_IN.unpack_from(body)
            if valid & SIZE_IS_VALID:
                self.data = self.data[:size].ljust(size, b"\0")
        if opcode in (SETATTR, GETATTR):
            return 0, bytes(16) + self._attributes(node)
        if opcode == READ:
            _, offset, size = READ_IN.unpack_from(body)
            return 0, bytes(self.data[offset : offset + size])
        if opcode == WRITE:
            _, offset, size = WRITE_IN.unpack_from(body)
            self.data[offset : offset + size] = body[WRITE_IN.size :][:size]
            return 0, struct.pack("=II", size, 0)
        return (0, ANSWERS[opcode]) if opcode in ANSWERS else (errno.ENOSYS, b"")

    def _attributes(self, node: int) -> bytes:
        size = len(self.data) if node == FILE else 0
        mode = 0o100666 if node == FILE else 0o40777
        return ATTR.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
