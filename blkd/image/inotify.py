# SPDX-License-Identifier: Apache-2.0
"""The kernel's word that an open file was modified (inotify(7))."""

import contextlib
import ctypes
import functools
import os
import struct
from collections.abc import Callable
from typing import Final

from blkd.host.blocking import ask
from blkd.host.fds import readable

IN_MODIFY: Final = 0x00000002
IN_IGNORED: Final = 0x00008000
IN_ONESHOT: Final = 0x80000000

ARM_LIMIT: Final = 5.0  # seconds that another process may take to arm a watch

EVENT: Final = struct.Struct("@iIII")
"""struct inotify_event: watch, mask, cookie, length of the name, of which a file has none."""
EVENTS_READ: Final = 16  # in one call; a watch of one shot leaves two

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]


def arm(notifier: int, path: str) -> None:
    """Have the inotify instance `notifier` announce the next modification of the file at `path`.

    Raises OSError, also where the process may not read that file.
    """
    _checked(_libc.inotify_add_watch(notifier, path.encode(), IN_MODIFY | IN_ONESHOT))


class Modification:
    """The next modification of an open file; plays `image.watch.Watch`, armed when made.

    Writes, fallocate and truncate count, through whatever path and by whatever process.  Once
    one has come, more of them cost nothing until `arm` asks for the next.
    """

    def __init__(self, fd: int, elsewhere: Callable[[int], None] | None = None) -> None:
        """Borrow `fd`, which need not stay open.  Raises OSError where that cannot be watched.

        `elsewhere` arms an inotify instance where this process may not; it blocks.  With it, the
        first `wait` may find that there is nothing to wait for yet.
        """
        # The descriptor's entry leads to the file itself, whatever has become of its path.
        self._file = f"/proc/self/fd/{fd}"
        self._elsewhere = elsewhere
        with contextlib.ExitStack() as undo:
            self._fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
            undo.callback(os.close, self._fd)
            self._armed = elsewhere is None
            if self._armed:
                arm(self._fd, self._file)
            undo.pop_all()

    async def arm(self) -> None:
        """Ask for the next modification; where that fails, `wait` will not wait for it."""
        try:
            if self._elsewhere is None:
                arm(self._fd, self._file)
            else:
                await ask(functools.partial(self._elsewhere, self._fd), ARM_LIMIT)
            self._armed = True
        except OSError:  # other processes have used up the user's watches, or it takes too long
            self._armed = False

    async def wait(self) -> None:
        """Return once the file was modified after it was armed."""
        while self._armed:
            await readable(self._fd)
            self._armed = not self._is_spent()

    def close(self) -> None:
        """Give up the watch."""
        os.close(self._fd)

    def _is_spent(self) -> bool:
        """Whether the kernel has taken the watch away, which it does after its one event.

        Armed between the two, the new watch would be the old one, and go with it.
        """
        events = os.read(self._fd, EVENTS_READ * EVENT.size)
        return any(mask & IN_IGNORED for _, mask, _, _ in EVENT.iter_unpack(events))


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
