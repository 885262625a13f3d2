# SPDX-License-Identifier: Apache-2.0
"""Whether this host can do the job: one check for each thing that blkd stands on."""

import fcntl
import os
import platform
import re
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blkd.errors import DataPlaneError, ImageError
from blkd.image import store
from blkd.image.raw import CONVERT_HINT, is_refused

OLDEST_KERNEL: Final = (6, 1)
"""The first with IORING_SETUP_DEFER_TASKRUN and with statx telling direct I/O's alignment."""

DESCRIPTORS_NEEDED: Final = 1024
"""Up to 509 memory regions, and for each of 64 queues three eventfds and its own io_uring."""

LOCKED_BY_WORKER: Final = 200 << 10
"""Bytes that a worker's io_uring takes: 1024 entries and 8192 completions."""

KVM_GET_API_VERSION: Final = 0xAE00
KVM_API_VERSION: Final = 12


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool | None
    """True: as it must be; False: blkd cannot do its job; None: good to know."""
    detail: str
    hint: str | None = None


def examine(image: str | None) -> list[Check]:
    """Look at this host, and at the image too if one is named; blocks for a moment."""
    found = [check for look in HOST for check in look()]
    if image is not None:
        found += _image(image)
    return found


def _kernel() -> Iterator[Check]:
    release = platform.release()
    version = tuple(int(n) for n in re.findall(r"\d+", release)[:2])
    oldest = ".".join(map(str, OLDEST_KERNEL))
    good = version >= OLDEST_KERNEL
    yield Check("kernel", good, release, None if good else f"Linux {oldest} or newer is needed")


def _io_uring() -> Iterator[Check]:
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    if setting.exists() and (value := setting.read_text("ascii").strip()) != "0":
        yield Check(
            "io_uring allowed",
            None if value == "1" else False,
            f"{setting} is {value}",
            "sysctl kernel.io_uring_disabled=0, or a member of kernel.io_uring_group for 1",
        )
    try:
        # Here and not above: this module is to tell that the extension is missing, not to miss it.
        from blkd.dataplane import probe_io_uring  # noqa: PLC0415

        opcodes = probe_io_uring()
    except ImportError as error:
        yield Check("data plane", False, f"not built: {error}", "make build")
    except DataPlaneError as error:
        yield Check("io_uring", False, str(error), error.hint)
    else:
        for name, supported in opcodes.items():
            yield Check(f"io_uring {name}", supported, "supported" if supported else "missing")


def _usdt_probes() -> Iterator[Check]:
    """Where a tracer finds the probes: good to know, since nothing else tells their file's name."""
    try:
        # Here, as it is of no use without the extension either.
        from blkd.dataplane import traced_files  # noqa: PLC0415
    except ImportError:
        return  # said above
    yield Check("USDT probes", None, " ".join(traced_files()) or f"not on {platform.machine()}")


def _descriptors() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    good = soft == resource.RLIM_INFINITY or soft >= DESCRIPTORS_NEEDED
    hint = None if good else f"ulimit -n {DESCRIPTORS_NEEDED}, or LimitNOFILE= in the unit"
    yield Check("open files", good, f"{_limit(soft)} (at most {_limit(hard)})", hint)


def _locked_memory() -> Iterator[Check]:
    """What io_urings and registered guest memory of one user may take without CAP_IPC_LOCK."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    detail = f"{_limit(soft)} bytes (at most {_limit(hard)})"
    hint = None
    if hard != resource.RLIM_INFINITY:
        workers = hard // LOCKED_BY_WORKER
        hint = f"enough for {workers} workers of one user's exports; LimitMEMLOCK= raises it"
    yield Check("locked memory", None, detail, hint)


def _huge_pages() -> Iterator[Check]:
    memory = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines()
    )
    free, total, size = (
        memory.get(key, "none").strip()
        for key in ("HugePages_Free", "HugePages_Total", "Hugepagesize")
    )
    yield Check("huge pages", None, f"{free} of {total} free, {size} each")


def _kvm() -> Iterator[Check]:
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "guests on this host run under TCG, which is slow; blkd itself does not mind"
        yield Check("kvm", None, f"/dev/kvm: {error.strerror}", hint)
        return
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION)
    finally:
        os.close(fd)
    known = "as expected" if version == KVM_API_VERSION else f"not {KVM_API_VERSION}"
    yield Check("kvm", None, f"answers with version {version}, {known}")


def _tun() -> Iterator[Check]:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "blkd net needs it: modprobe tun; disks do not"
        yield Check("network taps", None, f"/dev/net/tun: {error.strerror}", hint)
        return
    os.close(fd)
    yield Check("network taps", None, "/dev/net/tun opens")


def _vsock() -> Iterator[Check]:
    """Whether the host's kernel knows vsock: good to know, since ours ends in UNIX sockets."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as error:
        hint = "blkd vsock does without: programs of the host use its UNIX sockets"
        yield Check("vsock of the host", None, error.strerror or "not there", hint)
    else:
        yield Check("vsock of the host", None, "there; blkd vsock does without")


def _sandbox() -> Iterator[Check]:
    """What the process of an export can give up on this host: what is missing is left out."""
    try:
        # Here, as they are of no use without their extension either.
        from blkd.dataplane import restricts_io_uring  # noqa: PLC0415
        from blkd.host import landlock, namespaces, syscall_filter  # noqa: PLC0415
    except ImportError:
        return  # said above
    yield _part(
        "landlock",
        lambda: f"version {landlock.version()}",
        "CONFIG_SECURITY_LANDLOCK, and landlock in the kernel's parameter lsm=",
    )
    yield _part(
        "seccomp",
        lambda: f"system calls can{'' if syscall_filter.can_filter() else 'not'} be filtered",
        "CONFIG_SECCOMP_FILTER",
    )
    yield _part(
        "namespaces",
        lambda: ", ".join(namespaces.available()),
        "as root, or where users may make namespaces (user.max_user_namespaces)",
    )
    yield _part(
        "io_uring",
        lambda: "kept to its purpose" if restricts_io_uring() else "not kept to its purpose",
        None,
    )


def _part(name: str, look: Callable[[], str], hint: str | None) -> Check:
    """Whether a part of the sandbox is there; disks are served without."""
    try:
        return Check(f"sandbox: {name}", None, look())
    except OSError as error:
        return Check(f"sandbox: {name}", None, error.strerror or "missing", hint)
    except DataPlaneError as error:
        return Check(f"sandbox: {name}", None, str(error), error.hint)


HOST: Final[tuple[Callable[[], Iterator[Check]], ...]] = (
    _kernel,
    _io_uring,
    _usdt_probes,
    _descriptors,
    _locked_memory,
    _huge_pages,
    _kvm,
    _tun,
    _vsock,
    _sandbox,
)


def _image(path: str) -> Iterator[Check]:
    try:
        image = store.look_at(path)
    except ImageError as error:
        yield Check("image", False, str(error), error.hint)
        return
    place = f" on {image.filesystem}" if image.filesystem else ""
    good = image.size > 0 and image.size % image.logical_block_size == 0
    # One of another format need not be whole blocks, and nobody is to pad it.
    hint = (
        None
        if good or image.foreign_format
        else f"its size must be whole blocks of {image.logical_block_size}"
    )
    yield Check("image", good, f"{image.kind}{place}, {image.size} bytes", hint)
    yield Check(
        "direct I/O",
        image.direct or None,
        f"blocks of {image.logical_block_size}, memory aligned to {image.memory_alignment}"
        if image.direct
        else "not supported",
        None if image.direct else "--cache writeback goes through the host's page cache",
    )
    yield from _space(image)
    for holder in image.locked_by:
        hint = "end that before a writable export; read-only ones share with read-only users"
        yield Check("lock", None, f"held by {holder}", hint)
    if image.foreign_format is not None:
        hint = f"{CONVERT_HINT}; if its guest wrote that to a raw disk: --format raw"
        refused = is_refused(image.foreign_format, is_block_device=image.kind == "block device")
        verdict = False if refused else None
        yield Check("format", verdict, f"looks like {image.foreign_format}", hint)


def _space(image: store.ImageInfo) -> Iterator[Check]:
    """Whether the disk below could hold all of a sparse image."""
    missing = image.size - image.allocated
    if image.kind != "file" or missing <= 0:
        return
    below = os.statvfs(image.path)
    free = below.f_bavail * below.f_frsize
    hint = None if free >= missing else "a guest that fills its disk would meet I/O errors"
    yield Check("space", None, f"{missing} bytes still to allocate, {free} free", hint)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
