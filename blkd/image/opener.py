# SPDX-License-Identifier: Apache-2.0
"""An image opened once more for a process that may not open anything itself.

Whoever serves a disk in a sandbox has a socket (SOCK_SEQPACKET) to a process outside it, its
launcher.  While it may still be trusted it leaves a descriptor there by which the image is found
(O_PATH) and says how it is open; from then on it may ask for that image alone, open in that way.
"""

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import msgspec

from blkd.errors import ImageBusy, ImageError
from blkd.host.fds import ancillary_bytes, passed
from blkd.image import inotify, kernel

MESSAGE_BYTES: Final = 16384  # the longest: a path, or what a kernel says of one
MOST_FDS: Final = 253  # of one message, the kernel's SCM_MAX_FD
LIMIT: Final = 10.0  # seconds that the process outside has for an answer

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How an image is open."""

    path: str
    """For people."""
    read_only: bool
    direct: bool
    copies: int
    """How many times more, for syncs."""


class Opener(Protocol):
    """Opens an image once more."""

    def remember(self, manner: Manner, fd: int) -> None:
        """Be ready to open once more what `fd` is, borrowed.  Raises ImageError."""

    def open_again(self, *, exclusive: bool) -> list[int]:
        """The image, and as many copies for syncs as its manner says; taken by the caller.

        With `exclusive`, a block device is so open that no other process can have it.  Blocks,
        for LIMIT seconds at the most.  Raises ImageError, or ImageBusy.
        """

    def arm(self, notifier: int) -> None:
        """Have the inotify instance `notifier` announce the next modification; blocks likewise.

        Raises OSError.
        """


# ---- messages ----


class Remember(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="remember"):
    """With a descriptor (O_PATH); not answered."""

    manner: Manner


class OpenAgain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="open"):
    """Answered by `Opened` or `Failed` of the same number."""

    number: int
    exclusive: bool


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="arm"):
    """With an inotify instance; answered by `Opened`, without descriptors, or by `Failed`."""

    number: int


class Opened(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="opened"):
    """With the image, and behind it the copies."""

    number: int


class Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="failed"):
    """Why not."""

    number: int
    message: str
    hint: str | None = None
    busy: bool = False
    """Whether another process has it."""
    holder_known: bool = False


Request = Remember | OpenAgain | Arm
Answer = Opened | Failed

_requests: Final = msgspec.json.Decoder(Request)
_answers: Final = msgspec.json.Decoder(Answer)


def refusal(number: int, error: ImageError) -> Failed:
    """The answer that says this."""
    busy = isinstance(error, ImageBusy)
    known = isinstance(error, ImageBusy) and error.holder_known
    return Failed(number, str(error), error.hint, busy, known)


def error_of(failed: Failed) -> ImageError:
    """What an answer says."""
    if not failed.busy:
        return ImageError(failed.message, hint=failed.hint)
    error = ImageBusy(failed.message, hint=failed.hint)
    error.holder_known = failed.holder_known
    return error


def _send(sock: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    socket.send_fds(sock, [msgspec.json.encode(message)], list(fds))


def _receive(sock: socket.socket, decode: Callable[[bytes], T]) -> tuple[T | None, list[int]]:
    """A message, or None where the other side has closed; its descriptors are the caller's.

    Raises OSError, or msgspec.DecodeError on what is no message.
    """
    data, ancillary, flags, _ = sock.recvmsg(
        MESSAGE_BYTES, ancillary_bytes(MOST_FDS), socket.MSG_CMSG_CLOEXEC
    )
    fds = list(passed(ancillary))
    with contextlib.ExitStack() as undo:
        undo.callback(_close, fds)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise msgspec.DecodeError("a message is too long")
        try:
            message = decode(data) if data else None
        except RecursionError as error:
            raise msgspec.DecodeError("a message is nested too deep") from error
        undo.pop_all()
    return message, fds


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


# ---- inside ----


class AskingOpener:
    """Has the process at the other end of a socket open the image; plays `Opener`."""

    def __init__(self, sock: socket.socket, limit: float = LIMIT) -> None:
        """Takes `sock`, which waits for `limit` seconds at the most."""
        sock.settimeout(limit)
        self._sock = sock
        self._lock = threading.Lock()  # one question at a time
        self._number = 0
        self._path: str | None = None

    def close_unless_remembered(self) -> None:
        """Let nobody say `remember` later: to be called while this process may be trusted."""
        if self._path is None:
            self._sock.close()

    def remember(self, manner: Manner, fd: int) -> None:
        """As `Opener` has it."""
        self._path = manner.path
        try:
            place = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
            try:
                _send(self._sock, Remember(manner), [place])
            finally:
                os.close(place)
        except OSError as error:
            raise ImageError(f"{manner.path}: nobody is to open it again: {error}") from error

    def open_again(self, *, exclusive: bool) -> list[int]:
        """As `Opener` has it."""
        try:
            answer, fds = self._ask(lambda number: OpenAgain(number, exclusive))
        except (OSError, msgspec.DecodeError) as error:
            raise ImageError(
                f"{self._path}: was not opened again: {error}", hint="look at its file system"
            ) from error
        if isinstance(answer, Failed):
            _close(fds)
            raise error_of(answer)
        return fds

    def arm(self, notifier: int) -> None:
        """As `Opener` has it."""
        try:
            answer, fds = self._ask(Arm, [notifier])
        except msgspec.DecodeError as error:
            raise OSError(str(error)) from error
        _close(fds)
        if isinstance(answer, Failed):
            raise OSError(answer.message)

    def _ask(
        self, question: Callable[[int], Request], fds: Sequence[int] = ()
    ) -> tuple[Answer, list[int]]:
        """The answer to a question, with its descriptors; one that comes late is dropped."""
        with self._lock:
            self._number += 1
            _send(self._sock, question(self._number), fds)
            while True:
                answer, found = _receive(self._sock, _answers.decode)
                if answer is None:
                    raise ConnectionResetError("nobody is there to open it")
                if answer.number == self._number:
                    return answer, found
                _close(found)


# ---- outside ----

OpenAgainAs = Callable[[Manner, str, bool], list[int]]
"""Opens, in this manner, what is at a path, exclusively or not: `raw.open_again`."""


class OpenerPeer:
    """The end of the socket outside the sandbox: one image, for the process that it is of.

    What comes is hostile, from the second message on.
    """

    def __init__(self, sock: socket.socket, open_again: OpenAgainAs) -> None:
        """Takes `sock`."""
        sock.setblocking(False)
        self._sock = sock
        self._open_again = open_again
        self._manner: Manner | None = None
        self._place = -1
        self._is_local = False

    def fileno(self) -> int:
        """To be polled for what can be read."""
        return self._sock.fileno()

    @property
    def is_ready(self) -> bool:
        """Whether it is known what to open: what comes from now on may be hostile."""
        return self._manner is not None

    def know(self, manner: Manner, fd: int) -> None:
        """Have what is behind `fd` opened once more, taken, whatever the process may say."""
        self._manner, self._place = manner, fd
        self._is_local = kernel.filesystem(fd) in kernel.LOCAL_FILESYSTEMS

    def receive(self) -> OpenAgain | None:
        """What is to be opened, by `answer`; None where all is done.  Never blocks.

        Raises OSError where the process has gone, or broke the protocol: `close` is due.
        """
        try:
            request, fds = _receive(self._sock, _requests.decode)
        except BlockingIOError:
            return None
        except msgspec.DecodeError as error:
            raise ConnectionAbortedError(str(error)) from error
        try:
            match request:
                case Remember() if self._manner is None and len(fds) == 1:
                    self.know(request.manner, fds.pop())
                case OpenAgain() if not fds:
                    return request
                case Arm() if len(fds) == 1:
                    self._arm(request.number, fds[0])
                case None:
                    raise ConnectionResetError
                case _:
                    raise ConnectionAbortedError(f"{type(request).__name__} with {len(fds)}")
        finally:
            _close(fds)
        return None

    def answer(self, request: OpenAgain) -> None:
        """Open the image and send it: blocks as long as its file system does.

        To be called in a process of its own, forked for that.  Raises OSError where nobody waits.
        """
        manner: Final = self._manner
        if manner is None:
            self._reply(Failed(request.number, "nothing to open is known"))
            return
        fds: list[int] = []
        try:
            fds = self._open_again(manner, self._path(), request.exclusive)
            self._reply(Opened(request.number), fds)
        except ImageError as error:
            self._reply(refusal(request.number, error))
        finally:
            _close(fds)

    def close(self) -> None:
        """Let go of the image's place, and of the socket."""
        self._sock.close()
        place, self._place = self._place, -1
        if place >= 0:
            os.close(place)

    def _arm(self, number: int, notifier: int) -> None:
        """Refused where a file system may wait for somebody: this may not."""
        if not self._is_local:
            self._reply(Failed(number, os.strerror(errno.EOPNOTSUPP)))
            return
        try:
            inotify.arm(notifier, self._path())
        except OSError as error:
            self._reply(Failed(number, error.strerror or str(error)))
        else:
            self._reply(Opened(number))

    def _path(self) -> str:
        return f"/proc/self/fd/{self._place}"

    def _reply(self, answer: Answer, fds: Sequence[int] = ()) -> None:
        _send(self._sock, answer, fds)
