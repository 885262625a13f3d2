# SPDX-License-Identifier: Apache-2.0
"""The kernel's word that files in a directory were written to (inotify(7))."""

import contextlib
import ctypes
import os
import struct
from pathlib import Path
from typing import Final

from blkd.host.fds import readable

IN_MODIFY: Final = 0x00000002
EVENT: Final = struct.Struct("@iIII")
"""struct inotify_event: watch, mask, cookie, length of the name behind it."""
READ_BYTES: Final = 64 * 1024  # at once; thousands of events
IN_Q_OVERFLOW: Final = 0x00004000

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]


class DirectoryWatch:
    """Which files of a directory were written to since that was last asked."""

    def __init__(self, directory: Path) -> None:
        """Begin to watch.  Raises OSError where that cannot be."""
        with contextlib.ExitStack() as undo:
            self._fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
            undo.callback(os.close, self._fd)
            _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), IN_MODIFY))
            undo.pop_all()

    async def written(self) -> set[str] | None:
        """Wait for the next writes: the names of the files; None if there were too many to say."""
        names: set[str] = set()
        await readable(self._fd)
        with contextlib.suppress(BlockingIOError):
            while content := os.read(self._fd, READ_BYTES):
                at = 0
                while at < len(content):
                    _, mask, _, length = EVENT.unpack_from(content, at)
                    at += EVENT.size
                    if mask & IN_Q_OVERFLOW:
                        return None
                    names.add(os.fsdecode(content[at : at + length].rstrip(b"\0")))
                    at += length
        return names

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
