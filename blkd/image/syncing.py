# SPDX-License-Identifier: Apache-2.0
"""An image opened for syncs alone: once for each worker, and once for the control thread.

The kernel reports once to each open file description that something could not be written back,
whatever it was: two that sync through the same one take each other's errors away.  An error
that was not reported to anybody yet is reported to a description opened later, too.
"""

import contextlib
import fcntl
import os
from collections.abc import Sequence

from blkd.errors import ImageError
from blkd.image import kernel


class SyncFiles:
    """Further descriptions of an open image; none is locked or exclusive."""

    def __init__(self, fds: Sequence[int]) -> None:
        """Takes descriptions of the image: one for the control thread, and one for each worker."""
        self._own, *self._workers = fds

    def fd(self, worker: int) -> int:
        """Where a worker, counted from 0, syncs; borrowed.  The number never changes."""
        return self._workers[worker]

    def follow(self, fds: Sequence[int]) -> None:
        """Have these descriptions, borrowed, in the old ones' places."""
        for new, old in zip(fds, (self._own, *self._workers), strict=True):
            os.dup2(new, old, inheritable=False)

    def sync(self) -> None:
        """Make all durable that was written through any description; blocks.  Raises OSError."""
        os.fsync(self._own)

    def error(self) -> int:
        """The errno of a write-back that failed since the last `sync` or `error`, else 0.

        Writes nothing and waits for nothing: what is still to be written may fail later.
        """
        return kernel.write_error(self._own)

    def close(self) -> None:
        """Close them; may be called twice."""
        fds = [fd for fd in (self._own, *self._workers) if fd >= 0]
        self._own, self._workers = -1, []
        close_quietly(*fds)


def close_quietly(*fds: int) -> None:
    """Close these; what a file system says of unwritten data then is for syncs to report."""
    for fd in fds:
        with contextlib.suppress(OSError):  # it is closed whatever the answer (close(2))
            os.close(fd)


def open_copies(fd: int, path: str, count: int) -> list[int]:
    """So many further descriptions of the image at `path`, which `fd` is; the caller closes them.

    Raises ImageError: nothing is open then.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_DIRECT)
    with contextlib.ExitStack() as undo:
        found = []
        for _ in range(count):
            try:
                found.append(os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC))
            except OSError as error:
                raise ImageError(f"{path}: cannot be opened again: {error.strerror}") from error
            undo.callback(os.close, found[-1])
        undo.pop_all()
    return found
