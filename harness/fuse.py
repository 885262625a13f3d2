# SPDX-License-Identifier: Apache-2.0
"""A file system of one file in memory, which fails or keeps silent as a test says: FUSE, by hand.

    with FileSystem(tmp_path / "fuse", size) as storage:
        storage.answers[READ] = lambda: errno.EAGAIN
        serve(storage.path)

It speaks just as much of the protocol (include/uapi/linux/fuse.h) as it takes to open, map, read,
write, measure, punch and close the file.  The kernel keeps no attributes, so each fstat asks it.
"""

import contextlib
import ctypes
import errno
import os
import select
import stat
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from harness.storage import unmount

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS = 1, 2, 3, 4, 14, 15, 16, 17
RELEASE, FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR, INTERRUPT = 18, 20, 25, 26, 27, 29, 36
BATCH_FORGET, FALLOCATE = 42, 43
UNANSWERED: Final = {FORGET, INTERRUPT, BATCH_FORGET}

HEADER: Final = struct.Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, unused
ANSWER: Final = struct.Struct("=IiQ")  # length, -errno, unique
ATTRIBUTES: Final = struct.Struct("=6Q3I7I")
TRANSFER: Final = struct.Struct("=QQIIQII")  # handle, offset, size, and what is not looked at
RANGE: Final = struct.Struct("=QQQII")  # handle, offset, length, mode
TRUNCATION: Final = struct.Struct("=IIQQ")  # what is valid, unused, handle, size
SIZE_IS_VALID: Final = 1 << 3
PUNCH_HOLE: Final = 2  # of a mode
ROOT, FILE = 1, 2  # nodes
MOST: Final = 1 << 17  # bytes of one request's data
WRITEBACK_CACHE: Final = 1 << 16  # the kernel writes when it likes to, or at a sync
NAME: Final = "disk.img"
MNT_FORCE, MNT_DETACH = 1, 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


class FileSystem:
    """Mounted at `place` within the context; its one file is `path`."""

    def __init__(self, place: Path, size: int, *, writeback: bool = False) -> None:
        """With `writeback` what is written stays in the page cache at first."""
        self._flags = WRITEBACK_CACHE if writeback else 0
        self.path = place / NAME
        self.content = bytearray(size)
        self.answers: dict[int, Callable[[], int]] = {}
        """By kind of request the errno to answer with; 0 does what was asked.  After an ENOSYS to
        one, the kernel sends no FLUSH any more."""
        self.silent: set[int] = set()
        """The kinds of requests that get no answer before the context is left."""
        self.victim: int | None = None
        """The process whose requests alone are counted, and failed or not answered; None: all."""
        self.seen: Counter[int] = Counter()
        """How many requests of each kind have come."""
        self._place = place
        self._reads = True
        self._is_stuck = False  # nobody is answered any more
        self._has_ended = False

    def __enter__(self) -> Self:
        self._place.mkdir()
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"fuse", os.fsencode(self._place), b"fuse", 0, options.encode()):
            os.close(self._device)
            raise OSError(ctypes.get_errno(), "cannot mount FUSE")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.clear()
        if self._is_stuck or self.silent:
            self.abort()
            _libc.umount2(bytes(self._place), MNT_DETACH)
        else:
            unmount(self._place)
        self._has_ended = True
        self._thread.join(10)
        os.close(self._device)

    def abort(self) -> None:
        """Be gone: whoever still waits for an answer gets an error instead."""
        self._is_stuck = True
        _libc.umount2(bytes(self._place), MNT_FORCE)

    def stop_reading(self) -> None:
        """Be like a server that was stopped: requests stay in the kernel, and can be killed."""
        self._reads = False
        self._is_stuck = True

    def wait_for(self, kind: int, limit: float = 10) -> None:
        """Wait until a request of this kind has come."""
        deadline = time.monotonic() + limit
        while not self.seen[kind]:
            assert time.monotonic() < deadline, f"no request {kind} in {self.seen}"
            time.sleep(0.005)

    def _serve(self) -> None:
        """Answer until it is unmounted."""
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        while not self._has_ended:
            if not poll.poll(20) or not self._reads:
                continue
            try:
                request = os.read(self._device, MOST + 4096)
            except BlockingIOError:  # who asked has been interrupted
                continue
            except OSError:
                return  # unmounted
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        _, kind, unique, node, _, _, thread, _ = HEADER.unpack_from(request)
        is_meant = self.victim is None or Path(f"/proc/{self.victim}/task/{thread}").exists()
        self.seen[kind] += is_meant
        if kind in UNANSWERED:
            return
        if is_meant and kind in self.silent:
            return
        error, content = self.answers.get(kind, int)() if is_meant else 0, b""
        if error == 0:
            error, content = self._do(kind, node, request[HEADER.size :])
        head = ANSWER.pack(ANSWER.size + len(content), -error, unique)
        with contextlib.suppress(OSError):  # who asked has been interrupted, or all is unmounted
            os.write(self._device, head + content)

    def _do(self, kind: int, node: int, body: bytes) -> tuple[int, bytes]:
        """The errno and the content of an answer."""
        if kind in {RELEASE, RELEASEDIR, FSYNC, FLUSH}:
            return 0, b""
        if kind in {OPEN, OPENDIR}:
            return 0, bytes(16)
        if kind in {GETATTR, SETATTR}:
            if kind == SETATTR:
                self._truncate(*TRUNCATION.unpack_from(body))
            return 0, bytes(16) + self._attributes(node)
        if kind in {READ, WRITE}:
            return 0, self._transfer(kind, body)
        if kind == FALLOCATE:
            return self._punch(*RANGE.unpack_from(body)[1:4]), b""
        return self._describe(kind, body)

    def _describe(self, kind: int, body: bytes) -> tuple[int, bytes]:
        if kind == INIT:
            limits = (16, 12, MOST, 1, 32, 0, 0)
            return 0, struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, self._flags, *limits)
        if kind == STATFS:
            room = 1 << 20
            return 0, struct.pack("=5Q4I24x", room, room, room, 9, 9, 4096, 255, 4096, 0)
        if kind != LOOKUP:
            return errno.ENOSYS, b""
        if body.rstrip(b"\0") != NAME.encode():
            return errno.ENOENT, b""
        return 0, struct.pack("=QQQQII", FILE, 0, 0, 0, 0, 0) + self._attributes(FILE)

    def _attributes(self, node: int) -> bytes:
        is_file = node == FILE
        mode = stat.S_IFREG | 0o666 if is_file else stat.S_IFDIR | 0o777
        size = len(self.content) if is_file else 0
        times, owner = (0,) * 6, (0, 0, 0)
        return ATTRIBUTES.pack(node, size, -(-size // 512), *times, mode, 1, *owner, 4096, 0)

    def _truncate(self, valid: int, _unused: int, _handle: int, size: int) -> None:
        if valid & SIZE_IS_VALID:
            self.content = self.content[:size].ljust(size, b"\0")

    def _transfer(self, kind: int, body: bytes) -> bytes:
        _, offset, size, *_ = TRANSFER.unpack_from(body)
        if kind == READ:
            return bytes(self.content[offset : offset + size])
        self.content[offset : offset + size] = body[TRANSFER.size : TRANSFER.size + size]
        return struct.pack("=II", size, 0)

    def _punch(self, offset: int, length: int, mode: int) -> int:
        if not mode & PUNCH_HOLE:
            return errno.EOPNOTSUPP
        if offset < len(self.content):
            length = min(length, len(self.content) - offset)
            self.content[offset : offset + length] = bytes(length)
        return 0


def times(count: int, error: int) -> Callable[[], int]:
    """Answers with an error so often, then as asked."""
    left: list[Any] = [error] * count
    return lambda: left.pop() if left else 0
