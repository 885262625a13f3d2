# SPDX-License-Identifier: Apache-2.0
"""Builds the guest's initramfs: programs of this host and the kernel's virtio drivers.

The archive is kept under build/guest, a folder for each release of Debian that the programs and
the kernel come from, and made anew when one of its inputs changes.
"""

import hashlib
import io
import lzma
import platform
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from blkd.errors import BlkdError

RELEASE = platform.freedesktop_os_release()["VERSION_CODENAME"]
GUEST = Path(__file__).parent.parent / "build" / "guest" / RELEASE
INIT = Path(__file__).with_name("init")
PROGRAMS = ("fio", "blkdiscard", "flock")
MODULES = (
    *("virtio_pci", "virtio_iommu", "virtio_console", "virtio_blk", "virtio_mem", "virtio_net"),
    "vmw_vsock_virtio_transport",
)


class MissingPart(BlkdError):
    """Something that the guest is made of is not on this host."""


@dataclass(frozen=True, slots=True)
class Extra:
    """What some guests have beside what all have; their initramfs is a file of its own."""

    name: str
    programs: tuple[Path, ...]
    """They come to lie in /bin."""
    modules: tuple[str, ...] = ()
    """For "insmod /modules/NAME.ko": init loads none of them.  What they need is loaded."""


NOTHING = Extra("initramfs", ())


@dataclass(frozen=True, slots=True)
class Kernel:
    """Debian's cloud kernel as fetch_kernel.sh unpacked it."""

    image: Path
    modules: Path

    @classmethod
    def fetched(cls) -> "Kernel":
        """The kernel under build/guest.  Raises MissingPart without one."""
        root = GUEST / "kernel"
        for modules in (*root.glob("lib/modules/*"), *root.glob("usr/lib/modules/*")):
            return cls(root / "boot" / f"vmlinuz-{modules.name}", modules)
        raise MissingPart(f"no kernel in {root}", hint="make demo and make test fetch it")

    def has(self, module: str) -> bool:
        """Whether a module is there, by its name with hyphens or underscores as its file has it."""
        return any(self.modules.rglob(f"{module}.ko*"))

    def module_order(self, names: tuple[str, ...]) -> dict[str, Path]:
        """The files of these modules and of all that they need, by name, in the order to load."""
        files = {
            path.name.split(".")[0].replace("-", "_"): path for path in self.modules.rglob("*.ko*")
        }
        order: dict[str, Path] = {}

        def add(name: str) -> None:
            if name in order or name not in files:  # what has no file is built in
                return
            needs = re.search(rb"\0depends=([^\0]*)\0", module_bytes(files[name]))
            for need in filter(None, (needs[1] if needs else b"").decode().split(",")):
                add(need.replace("-", "_"))
            order[name] = files[name]

        for name in names:
            add(name)
        return order


def module_bytes(path: Path) -> bytes:
    """A kernel module, unpacked: Debian 13 compresses them."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def program(name: str) -> Path:
    """Where `name` is installed.  Raises MissingPart when it is not."""
    found = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise MissingPart(f"no {name} on this host", hint="install it with apt-get")
    return Path(found)


def libraries(path: Path) -> list[Path]:
    """Every shared object that the dynamic linker loads for a program."""
    command = ["/usr/bin/ldd", str(path)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    return [Path(library) for library in re.findall(r"(/\S+) \(0x", listed.stdout)]


class Cpio:
    """A cpio archive in the kernel's "newc" form, growing in memory; it knows no owners."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._inodes = 0
        self._directories = {Path("/")}

    def add(self, path: Path, data: bytes, mode: int = stat.S_IFREG | 0o755) -> None:
        """Add a file, after the directories that it lies in."""
        for parent in reversed(path.parents):
            if parent not in self._directories:
                self._directories.add(parent)
                self._entry(parent, b"", stat.S_IFDIR | 0o755)
        self._entry(path, data, mode)

    def finish(self) -> bytes:
        """The whole archive."""
        self._entry(Path("TRAILER!!!"), b"", 0)
        return self._out.getvalue()

    def _entry(self, path: Path, data: bytes, mode: int) -> None:
        name = str(path).lstrip("/").encode() + b"\0"
        self._inodes += 1
        links, owner, time, device, check = 1, 0, 0, 0, 0
        fields = (
            *(self._inodes, mode, owner, owner, links, time, len(data)),
            *(device, device, device, device, len(name), check),
        )
        self._write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._out.write(bytes(-self._out.tell() % 4))


def user_space(extra: Extra) -> dict[Path, Path]:
    """Programs and their libraries: where each is in the guest, and where it is here."""
    place = {path: path for path in map(program, PROGRAMS)}
    place |= {Path("/bin", path.name): path for path in extra.programs}
    place |= {library: library for path in place.values() for library in libraries(path)}
    return {Path("/bin/busybox"): program("busybox"), **place}


def build(kernel: Kernel, extra: Extra = NOTHING) -> Path:
    """The initramfs for `kernel`: the one at hand, unless an input has changed since."""
    files = user_space(extra)
    order = kernel.module_order(MODULES)
    modules = kernel.module_order(MODULES + extra.modules)
    inputs = fingerprint([*files.values(), *modules.values(), INIT, Path(__file__)])
    archive, stamp = GUEST / f"{extra.name}.cpio", GUEST / f"{extra.name}.inputs"
    if archive.exists() and stamp.exists() and stamp.read_text() == inputs:
        return archive

    cpio = Cpio()
    cpio.add(Path("/init"), INIT.read_bytes())
    for mount_point in ("proc", "sys", "dev"):
        cpio.add(Path("/", mount_point), b"", stat.S_IFDIR | 0o755)
    for place, path in files.items():
        cpio.add(place, path.read_bytes())
    for name, path in modules.items():
        cpio.add(Path(f"/modules/{name}.ko"), module_bytes(path))
    cpio.add(Path("/modules/order"), "".join(f"{name}\n" for name in order).encode())
    new = archive.with_suffix(".new")
    new.write_bytes(cpio.finish())
    new.rename(archive)
    stamp.write_text(inputs)
    return archive


def fingerprint(paths: list[Path]) -> str:
    """Changes when one of `paths` does: another file, another size, another time."""
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(seen).encode()).hexdigest()
