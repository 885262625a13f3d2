# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of an open file or block device: statx, ioctls, sysfs.

Facts only, in bytes; whether an image can be served with them is decided elsewhere.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

SECTOR_BYTES: Final = 512
PAGE_BYTES: Final = mmap.PAGESIZE
ALIGNMENTS: Final = (512, 1024, 2048, 4096)
"""The offset alignments that direct I/O may ask, smallest first."""
MEMORY_ALIGNMENTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, *ALIGNMENTS)
"""Those that it may ask of memory."""
DEVICE_MEMORY_ALIGNMENT: Final = 2
"""What a disk asks of memory at least.  Some ask nothing, but up to Linux 6.17 each buffer has to
be whole blocks all the same; 1 says that buffers are as they please."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One image as seen through one descriptor."""

    is_block_device: bool
    size: int
    offset_alignment: int
    """Smallest unit of I/O through this descriptor."""
    memory_alignment: int
    """Alignment asked of buffers; 1 where nothing is asked of them, as without O_DIRECT."""
    physical_block_size: int
    optimal_io_size: int
    """0 where unknown."""
    discard_granularity: int
    """0 where space cannot be given back, or not through a descriptor open for reading."""
    punches: bool
    """Whether a hole can be punched: a block device that discards may have no way to zero."""


class _Ioctl(IntEnum):
    """Requests of <linux/fs.h>; the answer's type is given where one is asked."""

    BLKROGET = 0x125E
    BLKSSZGET = 0x1268
    BLKIOOPT = 0x1279
    BLKALIGNOFF = 0x127A
    BLKPBSZGET = 0x127B
    BLKGETSIZE64 = 0x80081272


class Fallocate(IntEnum):
    """Modes of fallocate(2) in use here."""

    ALLOCATE = 0
    ALLOCATE_KEEP_SIZE = 0x01
    PUNCH_HOLE = 0x01 | 0x02
    """With KEEP_SIZE, which the kernel asks for."""


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd: int, mode: Fallocate, offset: int, length: int) -> None:
    """Ask the file system itself; posix_fallocate would write where it cannot."""
    while _libc.fallocate(fd, mode, offset, length) != 0:
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))


_WAIT_BEFORE: Final = 1  # SYNC_FILE_RANGE_WAIT_BEFORE
_NO_DATA_THERE: Final = 1 << 62  # bytes; beyond any image
_libc.sync_file_range.argtypes = [
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_uint,
]


def write_error(fd: int) -> int:
    """The errno of a write-back that failed and was not reported to the open file, else 0.

    Asked by waiting for what is written back where nothing can be: it returns at once.  A
    kernel that refuses the question knows of none.
    """
    if _libc.sync_file_range(fd, _NO_DATA_THERE, 1, _WAIT_BEFORE) == 0:
        return 0
    error = ctypes.get_errno()
    return 0 if error in {errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ESPIPE} else error


class _Statx(ctypes.Structure):
    """struct statx up to the fields asked for; the kernel writes all 256 bytes."""

    SIZE: Final = 256
    TYPE: Final = 0x1
    MNT_ID: Final = 0x1000
    DIOALIGN: Final = 0x2000
    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("before_mode", ctypes.c_uint8 * 24),
        ("mode", ctypes.c_uint16),
        ("before_mnt_id", ctypes.c_uint8 * 114),
        ("mnt_id", ctypes.c_uint64),
        ("dio_mem_align", ctypes.c_uint32),
        ("dio_offset_align", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * (SIZE - 160)),
    )


_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000


def _statx(fd: int, mask: int, flags: int = 0) -> _Statx:
    answer = _Statx()
    if _libc.statx(fd, b"", _AT_EMPTY_PATH | flags, mask, ctypes.byref(answer)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return answer


def filesystem(fd: int) -> str:
    """The type of the file system that holds `fd`, as mountinfo names it.

    Asks no server, where the mount is in a list: statfs(2) does.
    """
    # By mount and not by device number: that of a btrfs file is in no list of mounts.
    mount = str(_statx(fd, _Statx.MNT_ID, _AT_STATX_DONT_SYNC).mnt_id)
    named = (m.filesystem for m in _mounts() if m.mount_id == mount)
    return next(named, None) or FILESYSTEMS.get(_filesystem_magic(fd), "unknown")


FILESYSTEMS: Final = {
    0xEF53: "ext4",  # and its elders
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xCA451A4E: "bcachefs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x958458F6: "hugetlbfs",
    0x794C7630: "overlay",
    0x65735546: "fuse",
    0x6969: "nfs",
}
"""By what statfs(2) says of them: a mount above a chroot's own root is in no list of mounts."""

LOCAL_FILESYSTEMS: Final = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "f2fs", "zfs", "tmpfs", "overlay"}
)
"""Whose files change by this kernel only.  In all others somebody else may change them unheard:
another host, or the process behind a FUSE mount."""

_STATFS_BYTES: Final = 120  # struct statfs where a word has 64 bits; f_type comes first


def _filesystem_magic(fd: int) -> int:
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, answer) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    magic: int = struct.unpack_from("=q", answer)[0]
    return magic


def device_of_mount(mount_id: str) -> tuple[int, int] | None:
    """The device number of the file system mounted as `mount_id`; None if it is not seen here."""
    found = next((m.device for m in _mounts() if m.mount_id == mount_id), None)
    if found is None:
        return None
    major, _, minor = found.partition(":")
    return int(major), int(minor)


def device_name(number: int) -> str:
    """What the kernel calls the block device `number`: sda1, dm-0."""
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name


_SYSFS: Final = Path("/sys/dev/block")
_UDEV: Final = Path("/run/udev/data")


def device_identity(number: int, sysfs: Path = _SYSFS, udev: Path = _UDEV) -> str | None:
    """What distinguishes the block device `number` from all others, whatever it is called today.

    The UUID of a device-mapper device (LVM, multipath, dm-crypt), the WWID of a disk; of a
    partition its disk's and its number, or the UUID that its table gives it.  None where there
    is nothing of the kind.
    """
    name = f"{os.major(number)}:{os.minor(number)}"
    place = (sysfs / name).resolve()
    if partition := _line(place / "partition"):
        disk = _disk_identity(place.parent)
        return f"{disk}-part{partition}" if disk else _partition_uuid(place, udev / f"b{name}")
    return _disk_identity(place)


def _disk_identity(place: Path) -> str | None:
    for kind, facts in (("dm-uuid", ("dm/uuid",)), ("wwid", ("wwid", "device/wwid"))):
        for fact in facts:
            if found := _line(place / fact):
                return f"{kind}-{found}"
    return None


def _partition_uuid(place: Path, udev: Path) -> str | None:
    """As udev has noted it, or as newer kernels show it."""
    for notes, key in ((udev, "E:ID_PART_ENTRY_UUID="), (place / "uevent", "PARTUUID=")):
        try:
            lines = notes.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        if found := next((line[len(key) :] for line in lines if line.startswith(key)), ""):
            return f"partuuid-{found.lower()}"
    return None


def _line(place: Path) -> str:
    """The line of a sysfs file, empty where there is no such file or nothing in it."""
    try:
        return place.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def hears_of_devices() -> bool:
    """Whether the kernel's events of devices reach this process: not in a user namespace."""
    return Path("/proc/self/ns/user").stat().st_ino == _INITIAL_USER_NAMESPACE


_INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD  # inode number: PROC_USER_INIT_INO, linux/proc_ns.h


def users_of_device(number: int) -> list[str]:
    """Where the block device `number` is mounted and which other devices are built on it."""
    name = f"{os.major(number)}:{os.minor(number)}"
    built_on_it = Path("/sys/dev/block", name, "holders")
    return [f"the mount at {m.place}" for m in _mounts() if m.device == name] + [
        holder.name for holder in (built_on_it.iterdir() if built_on_it.is_dir() else ())
    ]


class _Mount(NamedTuple):
    """One line of mountinfo (proc(5)), as far as it is of use here."""

    mount_id: str
    device: str
    place: str
    filesystem: str


def _mounts() -> Iterator[_Mount]:
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    for mount, _, filesystem in (line.partition(" - ") for line in lines):
        mount_id, _, device, _, place, *_ = mount.split(" ")
        yield _Mount(mount_id, device, place, filesystem.split(" ", 1)[0])


def is_block_device(fd: int) -> bool:
    """Whether `fd` is one; asks no server."""
    return stat.S_ISBLK(_statx(fd, _Statx.TYPE, _AT_STATX_DONT_SYNC).mode)


def is_read_only(fd: int) -> bool:
    """Whether a block device refuses writes whoever opens it."""
    return _ask(fd, _Ioctl.BLKROGET, "i") != 0


def size(fd: int) -> int:
    """The present size of a file or block device."""
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return _ask(fd, _Ioctl.BLKGETSIZE64, "Q")
    return status.st_size


def facts(fd: int, *, ours: bool = True) -> Facts:
    """All that is to be known of `fd`, under the flags that it was opened with.

    Nothing is written to it unless it is `ours` to write to.
    """
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return _device_facts(fd)
    return _file_facts(fd, ours=ours)


FORMATS: Final = {
    b"QFI\xfb": "qcow2",
    b"QED\0": "qed",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vhd",
    b"<<< ": "vdi",
    b"WithoutFreeSpace": "parallels",
    b"WithouFreSpacExt": "parallels",
    b"LUKS\xba\xbe": "luks",
}
"""How images of other formats begin.  A CD's image (ISO 9660) is a raw one."""

VHD_FOOTER: Final = b"conectix"
"""How the last sector of any VHD begins, also of one that is raw before it."""


def foreign_format(fd: int) -> str | None:
    """The image format that `fd` looks like; also a raw disk may, if its guest wrote so."""
    head = _page(fd, 0)[:SECTOR_BYTES]
    found = next((name for magic, name in FORMATS.items() if head.startswith(magic)), None)
    status = os.fstat(fd)
    if found is None and stat.S_ISREG(status.st_mode) and status.st_size >= 2 * SECTOR_BYTES:
        last = status.st_size - SECTOR_BYTES
        start = last // PAGE_BYTES * PAGE_BYTES
        tail = _page(fd, start) + _page(fd, start + PAGE_BYTES)
        if tail[last - start :].startswith(VHD_FOOTER):
            return "vhd"
    return found


def _page(fd: int, offset: int) -> bytes:
    """What there is of a page, read as direct I/O wants it."""
    with mmap.mmap(-1, PAGE_BYTES) as page:
        return page[: os.preadv(fd, [page], offset)]


def _device_facts(fd: int) -> Facts:
    number = os.fstat(fd).st_rdev
    logical = _ask(fd, _Ioctl.BLKSSZGET, "i")
    memory = max(_statx(fd, _Statx.DIOALIGN).dio_mem_align or logical, DEVICE_MEMORY_ALIGNMENT)
    # A device whose first physical block starts elsewhere cannot promise aligned ones.
    shifted = _ask(fd, _Ioctl.BLKALIGNOFF, "i") != 0
    physical = logical if shifted else _ask(fd, _Ioctl.BLKPBSZGET, "I")
    can_discard = _queue_limit(number, "discard_max_bytes") > 0
    return Facts(
        is_block_device=True,
        size=size(fd),
        offset_alignment=logical,
        memory_alignment=memory if _is_direct(fd) else 1,
        physical_block_size=physical,
        optimal_io_size=_ask(fd, _Ioctl.BLKIOOPT, "I"),
        discard_granularity=(
            max(logical, _queue_limit(number, "discard_granularity")) if can_discard else 0
        ),
        punches=_queue_limit(number, "write_zeroes_max_bytes") > 0,
    )


def _file_facts(fd: int, *, ours: bool) -> Facts:
    offset, memory = _direct_alignment(fd) if _is_direct(fd) else (SECTOR_BYTES, 1)
    # The unit of allocation, where it is one: network file systems put other sizes there.
    unit = os.fstatvfs(fd).f_frsize
    punches = _can_punch(fd, ours=ours)
    block = unit if unit in ALIGNMENTS else ALIGNMENTS[-1]
    return Facts(
        is_block_device=False,
        size=size(fd),
        offset_alignment=offset,
        memory_alignment=memory,
        physical_block_size=max(offset, block),
        optimal_io_size=0,
        discard_granularity=max(offset, block) if punches else 0,
        punches=punches,
    )


def _direct_alignment(fd: int) -> tuple[int, int]:
    """What O_DIRECT asks of offsets and of memory: as the kernel says, else found by reading."""
    found = _statx(fd, _Statx.DIOALIGN)
    if found.mask & _Statx.DIOALIGN and found.dio_offset_align:
        return found.dio_offset_align, max(found.dio_mem_align, DEVICE_MEMORY_ALIGNMENT)
    # A hole may be read at any alignment, so what is known of the disk below comes first.
    disk = os.fstat(fd).st_dev
    floor = _queue_limit(disk, "logical_block_size")
    offset = next((n for n in ALIGNMENTS if n >= floor and _readable(fd, n, n, n)), ALIGNMENTS[-1])
    if not floor:  # nor is there a disk below that could ask for anything
        lowest = MEMORY_ALIGNMENTS[0]
    else:
        lowest = max(_queue_limit(disk, "dma_alignment") + 1, DEVICE_MEMORY_ALIGNMENT)
    fitting = (n for n in MEMORY_ALIGNMENTS if lowest <= n < offset and _readable(fd, 0, offset, n))
    return offset, next(fitting, offset)


def _readable(fd: int, offset: int, length: int, alignment: int) -> bool:
    """Whether direct I/O serves `length` bytes at `offset` into memory aligned to no more."""
    with mmap.mmap(-1, length + 2 * PAGE_BYTES) as pages, memoryview(pages) as memory:
        try:
            os.preadv(fd, [memory[alignment : alignment + length]], offset)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
    return True


PUNCHING: Final = frozenset(
    [
        "bcachefs",
        "btrfs",
        "ceph",
        "cifs",
        "ext4",
        "f2fs",
        "fuse",
        "gfs2",
        "nfs4",
        "ocfs2",
        "smb3",
        "tmpfs",
        "xfs",
    ]
)
"""File systems that give space back, as far as nothing can be tried."""


def _can_punch(fd: int, *, ours: bool) -> bool:
    """Whether the file system gives space back.

    Asked just past the end, where no data is, of a file that is `ours`; of another one, which
    may be growing, by a file without a name beside it.
    """
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return False
    if ours:
        return _punches(fd, -(-size(fd) // PAGE_BYTES) * PAGE_BYTES)
    try:
        beside = _nameless_beside(fd)
    except OSError:
        return filesystem(fd).partition(".")[0] in PUNCHING
    try:
        return _punches(beside, 0)
    finally:
        os.close(beside)


def _nameless_beside(fd: int) -> int:
    """A file without a name in the directory of `fd`.  Raises OSError where there can be none."""
    directory = Path(f"/proc/self/fd/{fd}").readlink().parent
    found = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    if os.fstat(found).st_dev != os.fstat(fd).st_dev:
        os.close(found)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return found


def _punches(fd: int, offset: int) -> bool:
    """Whether a page at `offset` could be given back."""
    try:
        fallocate(fd, Fallocate.PUNCH_HOLE, offset, PAGE_BYTES)
    except OSError:
        return False
    return True


def _is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def _ask(fd: int, request: _Ioctl, answer: str) -> int:
    packed = fcntl.ioctl(fd, request, bytes(struct.calcsize(answer)))
    value: int = struct.unpack(answer, packed)[0]
    return value


def _queue_limit(number: int, name: str) -> int:
    """A limit of the block device `number`, 0 where there is none; a partition has its disk's."""
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    for queue in (device / "queue", device / "../queue"):
        try:
            return int((queue / name).read_text("ascii"))
        except FileNotFoundError:
            continue
    return 0
