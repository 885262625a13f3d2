# SPDX-License-Identifier: Apache-2.0
"""Raw images: a regular file or a block device whose bytes are the disk's."""

import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Self, TypeVar

import structlog

from blkd.errors import ImageBusy, ImageError, SyncFailed
from blkd.image import kernel, lock
from blkd.image.base import Limits, Opening, Watch
from blkd.image.engine import FileIo, choose
from blkd.image.measure import Measure, is_known_at_once
from blkd.image.opener import Manner
from blkd.image.syncing import SyncFiles, close_quietly, open_copies
from blkd.image.watch import Announcements

log = structlog.get_logger()

T = TypeVar("T")

LOGICAL_BLOCK_SIZES: Final = (512, 4096)
"""What a guest may be shown: all drivers know these two."""

LINGER_LIMIT: Final = 5.0
"""Seconds to wait for an image that no process is seen to have open: a killed one's last
requests keep its descriptor, and with it the lock, until the disk has answered them."""

LINGER_PERIOD: Final = 0.02  # seconds between two tries

LOCK_LIMIT: Final = 5.0
"""Seconds to wait for an image whose lock is to be released, whoever has it."""

CONVERT_HINT: Final = "qemu-img convert -O raw makes a raw image of it"

BUFFERED_HINT: Final = "--cache writeback goes through the host's page cache instead"


class RawImage:
    """An open raw image; plays `image.base.Image`.

    Its lock and, of a block device, its exclusive opening (O_EXCL) belong to the open file.  So
    to lock an image or to unlock it is to open it once more, with or without them, and to put
    that in the place of `fd`, whose number stays.  On NFS that is also when one host sees what
    another wrote.
    """

    def __init__(
        self,
        path: str,
        fd: int,
        copies: Sequence[int],
        limits: Limits,
        opening: Opening,
        *,
        is_locked: bool,
    ) -> None:
        """An image of the open file `fd` and its copies for syncs; takes all."""
        self.path = path
        self.fd = fd
        self.limits = limits
        self.read_only = opening.read_only
        self.direct = opening.direct
        self.is_locked = is_locked
        self.engine = choose(fd, opening.engine, direct=opening.direct)
        self.identity = identity_of(path, fd)
        self._opener = opening.opener
        self._manner = manner_of(path, opening)
        self._measure = Measure(path, at_once=is_known_at_once(fd))
        self._syncs = SyncFiles(copies)
        self._announcements = Announcements(
            fd, is_block_device=limits.is_block_device, opener=opening.opener
        )

    @classmethod
    def open(cls, path: str, opening: Opening) -> Self:
        """Open, lock and measure what is at `path`; blocks, `open_raw` does not."""
        read_only = opening.read_only
        locked = read_only or not opening.incoming  # readers do not mind each other
        with contextlib.ExitStack() as undo:
            fd = open_file(
                path,
                read_only=read_only,
                direct=opening.direct,
                exclusive=locked,
                at=opening.at,
            )
            undo.callback(os.close, fd)
            if locked:
                lock.acquire(fd, path, lock.READER if read_only else lock.WRITER)
            facts = kernel.facts(fd, ours=locked)
            if opening.image_format is None:
                refuse_foreign(path, fd, is_block_device=facts.is_block_device)
            limits = limits_of(facts, path, opening.logical_block_size)
            manner = manner_of(path, opening)
            copies = open_copies(fd, path, manner.copies)
            undo.callback(close_quietly, *copies)
            if opening.opener is not None:
                opening.opener.remember(manner, fd)
            image = cls(path, fd, copies, limits, opening, is_locked=locked)
            undo.pop_all()
        return image

    @classmethod
    def adopt(cls, path: str, fd: int, opening: Opening, *, is_locked: bool) -> Self:
        """Go on with what another process has opened; takes `fd`, and its lock comes with it.

        Raises:
            ImageError: It is not open as `opening` says, or cannot be served so; `fd` is closed.
        """
        read_only, block = opening.read_only, opening.logical_block_size
        assert block is not None
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            require_open_as(fd, path, read_only=read_only, direct=opening.direct)
            if is_locked:  # nothing is locked here: the other process may let go of it any time
                lock.require(fd, path, lock.READER if read_only else lock.WRITER)
            facts = kernel.facts(fd, ours=False)  # it is the other process that serves it
            # It may have got a size meanwhile that is no whole blocks: a part is not served.
            whole = facts.size // block * block
            limits = limits_of(dataclasses.replace(facts, size=whole), path, block)
            manner = manner_of(path, opening)
            copies = open_copies(fd, path, manner.copies)
            undo.callback(close_quietly, *copies)
            if opening.opener is not None:
                opening.opener.remember(manner, fd)
            image = cls(path, fd, copies, limits, opening, is_locked=is_locked)
            undo.pop_all()
        return image

    async def take_lock(self) -> None:
        """Lock the image if it is not, waiting for whoever releases it; measure it anew."""
        if self.is_locked:
            return
        await _patiently(lambda: asyncio.to_thread(self._reopen, locked=True), LOCK_LIMIT)
        await self.refresh()
        log.info("image locked", path=self.path, size=self.limits.size)

    async def release_lock(self) -> None:
        """Make all writes durable and give up the lock.  One that is only read stays as it is."""
        if not self.is_locked or self.read_only:
            return
        await self._sync()
        await asyncio.to_thread(self._reopen, locked=False)
        log.info("image unlocked", path=self.path)

    def io(self, worker: int) -> FileIo:
        """By the kernel, through the one open file for data and the worker's own for syncs."""
        return FileIo(
            fd=self.fd,
            sync_fd=self._syncs.fd(worker),
            direct=self.direct,
            at_once=self.engine.name == "inline",
            nowait=self.engine.nowait,
            block_size=self.limits.logical_block_size,
            memory_alignment=self.limits.memory_alignment,
            may_discard_by_command=self.limits.is_block_device and not self.read_only,
        )

    def lent(self) -> int:
        """The open file itself: its lock comes with it."""
        return self.fd

    async def set_size(self, size: int) -> None:
        """Do nothing: the file says how long it is."""

    def watch(self, period: float) -> Watch:
        """A watch by the kernel's events, or else by the clock."""
        return self._announcements.watch(self, self.fd, period)

    def space(self) -> int | None:
        """What the file system has for those without privileges; None of a block device."""
        if self.limits.is_block_device:
            return None
        found = os.fstatvfs(self.fd)
        return found.f_bavail * found.f_frsize

    def write_error(self) -> int:
        """The errno of what could not be written and no resize or release has reported."""
        return self._syncs.error()

    async def _sync(self) -> None:
        try:
            await asyncio.to_thread(self._sync_whole)
        except OSError as error:
            raise SyncFailed(
                f"{self.path}: cannot be made durable: {error.strerror}", error.errno or errno.EIO
            ) from error

    def _sync_whole(self) -> None:
        try:
            self._syncs.sync()
        finally:
            # Python repeats a sync that ends with EINTR, also a write-back's, reported only once.
            error = kernel.write_error(self.fd)
        if error:
            raise OSError(error, os.strerror(error))

    def _reopen(self, *, locked: bool) -> None:
        """Open what `fd` is open for once more, locked or not, in its place."""
        fd, *copies = self._open_again(exclusive=locked)
        try:
            if locked:
                lock.acquire(fd, self.path, lock.WRITER)
                # Of what the page cache has, another host may have written something else.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if self.is_locked:  # with an open file that another process may have as well
                lock.release(self.fd, self.path)
            os.dup2(fd, self.fd, inheritable=False)
            self._syncs.follow(copies)
        finally:
            close_quietly(fd, *copies)
        self.is_locked = locked

    def _open_again(self, *, exclusive: bool) -> list[int]:
        """The image and its copies, opened once more: by whoever may."""
        if self._opener is not None:
            return self._opener.open_again(exclusive=exclusive)
        # Whatever has become of the path.
        return open_again(self._manner, f"/proc/self/fd/{self.fd}", exclusive)

    async def measure(self) -> int:
        """The size now.  Raises ImageError where its file system does not say it in time.

        A size that came about elsewhere need not be whole blocks: a part of one is not served.
        """
        block = self.limits.logical_block_size
        return await self._measure.size(self.fd) // block * block

    async def refresh(self) -> bool:
        """Ask for the size again: whether `limits` changed.  Raises ImageError as `measure`."""
        size = await self.measure()
        changed = size != self.limits.size
        self.limits = dataclasses.replace(self.limits, size=size)
        return changed

    async def resize(self, size: int) -> None:
        """Make the file `size` bytes long, durably.  Raises ImageError where that cannot be."""
        block = self.limits.logical_block_size
        if not self.is_locked:
            raise ImageError(
                f"{self.path}: is not locked by this process, cannot be resized",
                hint="resize it where the guest runs: it was, or will be, migrated",
            )
        if self.limits.is_block_device:
            raise ImageError(
                f"{self.path}: a block device cannot be resized from here",
                hint="resize it where it is made (LVM, partitions, storage): that is noticed",
            )
        if self.read_only:
            raise ImageError(f"{self.path}: served read-only, cannot be resized")
        if size <= 0 or size % block:
            raise ImageError(f"{self.path}: {size} bytes are not one or more blocks of {block}")
        try:
            await asyncio.to_thread(_make_long, self.fd, size)
        except OSError as error:
            raise ImageError(
                f"{self.path}: cannot be made {size} bytes long: {error.strerror}"
            ) from error
        await self._sync()
        await self.refresh()

    def close(self) -> None:
        """Give up the descriptor and with it the lock; may be called twice."""
        self._announcements.close()
        self._syncs.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close_quietly(fd)


async def open_raw(path: str, opening: Opening) -> RawImage:
    """The image at `path`, a file or a block device, locked and measured; the caller closes it.

    Raises:
        ImageBusy: Somebody else uses it in a way that excludes ours.
        ImageError: It is missing, no image, of an odd size, or not to be served as asked.
    """
    opened = functools.partial(RawImage.open, path, opening)
    return await _patiently(
        lambda: _in_thread(opened), LINGER_LIMIT, unless=lambda busy: busy.holder_known
    )


async def _patiently(
    attempt: Callable[[], Awaitable[T]],
    limit: float,
    unless: Callable[[ImageBusy], bool] = lambda _: False,
) -> T:
    """The result of `attempt`, tried for `limit` seconds while the image is in use."""
    loop = asyncio.get_running_loop()
    patience = loop.time() + limit
    while True:
        try:
            return await attempt()
        except ImageBusy as error:
            if unless(error) or loop.time() > patience:
                raise
            await asyncio.sleep(LINGER_PERIOD)


async def _in_thread(opened: Callable[[], RawImage]) -> RawImage:
    opening = asyncio.get_running_loop().run_in_executor(None, opened)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # A thread cannot be stopped: what it still opens is closed when it comes.
        opening.add_done_callback(_close_unwanted)
        raise


def default_serial(identity: str) -> str:
    """20 characters for the image of this identity, unlike any other image's."""
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()
    return f"blkd{digest[:16]}"


def identity_of(path: str, fd: int) -> str:
    """What distinguishes the image at `path`, open as `fd`, from all others, from start to start.

    A file is its path without symbolic links.  A block device is what the kernel knows it by:
    names like dm-3 or sdb are given anew at each boot.  Where it knows it by nothing else, the
    path as it was given is the one that somebody keeps true.
    """
    status = os.fstat(fd)
    if not stat.S_ISBLK(status.st_mode):
        return os.path.realpath(path)
    return kernel.device_identity(status.st_rdev) or os.path.abspath(path)  # noqa: PTH100 - links stay


def open_file(
    path: str, *, read_only: bool, direct: bool, exclusive: bool = True, at: str | None = None
) -> int:
    """A descriptor of the image at `path`, taken by the caller; nothing is locked yet.

    With `exclusive`, a block device cannot be opened so by another process, nor mounted; `at` is
    where to find the image if not at its path.
    """
    try:
        status = Path(at or path).stat()
        is_block_device = _is_block_device(path, status.st_mode)
        # A block device opened with O_EXCL cannot be mounted, swapped to or built on while we
        # write.  For a file the flag has no meaning without O_CREAT.
        exclusive_flag = os.O_EXCL if exclusive and is_block_device and not read_only else 0
        access = os.O_RDONLY if read_only else os.O_RDWR
        direct_flag = os.O_DIRECT if direct else 0
        fd = os.open(at or path, access | exclusive_flag | direct_flag | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            users = [*lock.holders_at(at or path), *kernel.users_of_device(status.st_rdev)]
            raise lock.busy(path, users) from error
        raise _refusal(path, error, read_only=read_only, direct=direct) from error
    if is_block_device and not read_only and kernel.is_read_only(fd):
        os.close(fd)
        raise ImageError(f"{path}: is a read-only device", hint="serve it with --read-only")
    return fd


def open_again(manner: Manner, at: str, exclusive: bool) -> list[int]:  # noqa: FBT001 - as `opener` has it
    """The image that is found at `at`, and as many copies; the caller closes them.

    Raises ImageError: nothing is open then.
    """
    path = manner.path
    fd = open_file(
        path, read_only=manner.read_only, direct=manner.direct, exclusive=exclusive, at=at
    )
    try:
        return [fd, *open_copies(fd, path, manner.copies)]
    except ImageError:
        os.close(fd)
        raise


def manner_of(path: str, opening: Opening) -> Manner:
    """How the image at `path` is open, to be opened once more in the same way."""
    return Manner(
        path=path,
        read_only=opening.read_only,
        direct=opening.direct,
        copies=1 + opening.workers,  # the control thread's, and one of each worker
    )


def require_open_as(fd: int, path: str, *, read_only: bool, direct: bool) -> None:
    """Raise ImageError unless `fd` is an image, open for just this."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise ImageError(f"{path}: its descriptor is of no file and no block device")
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    access = os.O_RDONLY if read_only else os.O_RDWR
    is_place = bool(flags & os.O_PATH)  # which tells no rights, whoever has it
    if is_place or flags & os.O_ACCMODE != access or bool(flags & os.O_DIRECT) != direct:
        raise ImageError(f"{path}: its descriptor is open in another way: flags {flags:#o}")


def is_refused(found: str, *, is_block_device: bool) -> bool:
    """Whether an image that looks like `found`, another format, is served only with `--format raw`.

    A guest that encrypts its whole disk puts LUKS there, as is common on block devices; a file
    that begins so may as well be an image that QEMU encrypts.
    """
    return not (found == "luks" and is_block_device)


def refuse_foreign(path: str, fd: int, *, is_block_device: bool) -> None:
    """Raise ImageError if the image looks like one of another format."""
    try:
        found = kernel.foreign_format(fd)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    if found is not None and is_refused(found, is_block_device=is_block_device):
        raise ImageError(
            f"{path}: looks like a {found} image, not a raw one",
            hint=f"if its guest wrote that to a raw disk, take --format raw; else {CONVERT_HINT}",
        )


def limits_of(facts: kernel.Facts, path: str, logical_block_size: int | None) -> Limits:
    """Under which limits an image of these facts can be served.  Raises ImageError if it cannot."""
    smallest = next((n for n in LOGICAL_BLOCK_SIZES if n >= facts.offset_alignment), None)
    if smallest is None:
        raise ImageError(
            f"{path}: direct I/O needs blocks of {facts.offset_alignment} bytes",
            hint=BUFFERED_HINT,
        )
    block = logical_block_size or smallest
    if block < smallest:
        raise ImageError(
            f"{path}: needs blocks of {smallest} bytes, not {block}",
            hint=f"take --logical-block-size {smallest}; for a file, {BUFFERED_HINT}",
        )
    if facts.size == 0:
        raise ImageError(f"{path}: is empty", hint="blkd image create makes an image with a size")
    if facts.size % block:
        raise ImageError(
            f"{path}: {facts.size} bytes are not whole blocks of {block}",
            hint=f"for a file, truncate --size=%{block} rounds it up",
        )
    physical = max(block, facts.physical_block_size)
    return Limits(
        size=facts.size,
        logical_block_size=block,
        physical_block_size=physical,
        # Some disks report sizes that no file system could align to.
        optimal_io_size=0 if facts.optimal_io_size % physical else facts.optimal_io_size,
        memory_alignment=facts.memory_alignment,
        discard_granularity=facts.discard_granularity and max(block, facts.discard_granularity),
        punches=facts.punches,
        is_block_device=facts.is_block_device,
    )


_NO_IMAGES: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFSOCK: "a socket",
}


def _is_block_device(path: str, mode: int) -> bool:
    if (found := _NO_IMAGES.get(stat.S_IFMT(mode))) is not None:
        raise ImageError(
            f"{path}: is {found}, not an image",
            hint="an image is a regular file or a block device",
        )
    return stat.S_ISBLK(mode)


def _refusal(path: str, error: OSError, *, read_only: bool, direct: bool) -> ImageError:
    """What to say to a person whose image the kernel would not open."""
    hint: str | None = None
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            hint = f"blkd image create {path} SIZE makes one"
        case errno.EACCES | errno.EPERM if read_only:
            hint = "look at the owner and mode of the file and its directories"
        case errno.EACCES | errno.EPERM:
            hint = "look at its owner and mode, or serve it with --read-only"
        case errno.EROFS:
            hint = "serve it with --read-only"
        case errno.EINVAL if direct:
            hint = f"its file system may not know direct I/O; {BUFFERED_HINT}"
    return ImageError(f"{path}: cannot be opened: {error.strerror}", hint=hint)


def _make_long(fd: int, size: int) -> None:
    """Give a file another size; one without holes grows by space that is taken now."""
    status = os.fstat(fd)
    if size > status.st_size and status.st_blocks * kernel.SECTOR_BYTES >= status.st_size:
        _take_space(fd, status.st_size, size)
    os.ftruncate(fd, size)


def _take_space(fd: int, start: int, end: int) -> None:
    """Take the space behind a file's end, where its file system can.  Raises OSError: none is."""
    try:
        kernel.fallocate(fd, kernel.Fallocate.ALLOCATE_KEEP_SIZE, start, end - start)
    except OSError as error:
        os.ftruncate(fd, start)  # what was taken before it failed
        if error.errno != errno.EOPNOTSUPP:
            raise
        log.warning("space not taken for what an image grows by", reason=error.strerror)


def _close_unwanted(opening: asyncio.Future[RawImage]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
