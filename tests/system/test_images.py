# SPDX-License-Identifier: Apache-2.0
"""Images on real file systems and block devices, and locks against the real QEMU."""

import asyncio
import contextlib
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blkd.diagnosis import examine
from blkd.errors import ImageBusy, ImageError
from blkd.image import raw, store
from blkd.image.base import Opening
from harness.storage import DISK_BYTES, loop_device, mounted, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and loop devices are root's")

MIB = 1 << 20


@pytest.fixture
async def disk(tmp_path):
    path = tmp_path / "disk.img"
    await store.create(str(path), MIB, preallocate=False)
    return path


@contextlib.asynccontextmanager
async def opened(path, *, read_only=False, direct=True, block=None):
    opening = Opening(read_only=read_only, direct=direct, logical_block_size=block)
    image = await raw.open_raw(str(path), opening)
    with contextlib.closing(image):
        yield image


async def refusal(path, **how):
    with pytest.raises(ImageError) as refused:
        async with opened(path, **how):
            pass
    return refused.value


async def limits(path, **how):
    async with opened(path, **how) as image:
        return image.limits


# ---- block devices


async def test_a_block_device_is_served_with_its_own_blocks(device):
    found = await limits(device)
    assert found.is_block_device
    assert (found.size, found.logical_block_size, found.physical_block_size) == (
        DISK_BYTES,
        4096,
        4096,
    )
    assert found.discard_granularity % 4096 == 0
    assert found.discard_granularity > 0
    assert found.memory_alignment in (4, 512, 4096)


async def test_blocks_smaller_than_the_device_has_are_refused(device):
    assert "--logical-block-size 4096" in (await refusal(device, block=512)).hint


@pytest.fixture
def partition(backing):
    run("sfdisk", "--quiet", "--label=gpt", backing, text="size=64MiB")
    with loop_device(backing) as disk:
        run("partx", "--add", disk)  # knows more labels than some kernels
        try:
            yield Path(f"{disk}p1")
        finally:
            run("partx", "--delete", disk)


async def test_a_partition_has_the_limits_of_its_disk(partition):
    found = await limits(partition)
    assert found.size == 64 * MIB
    assert found.is_block_device
    assert found.discard_granularity > 0


async def test_a_grown_block_device_is_noticed_and_not_resized_from_here(backing, device):
    async with opened(device) as image:
        os.truncate(backing, DISK_BYTES + MIB)
        run("losetup", "--set-capacity", device)
        assert await image.refresh()
        assert image.limits.size == DISK_BYTES + MIB
        with pytest.raises(ImageError, match="block device"):
            await image.resize(DISK_BYTES)


async def test_a_mounted_block_device_is_refused_with_its_mount_point(xfs, device):
    error = await refusal(device)
    assert isinstance(error, ImageBusy)
    assert str(xfs) in str(error)


async def test_a_block_device_being_served_cannot_be_mounted(device, tmp_path):
    run("mkfs.xfs", "-q", device)
    async with opened(device):
        with pytest.raises(subprocess.CalledProcessError), mounted(device, tmp_path / "xfs"):
            pass


async def test_a_second_writer_of_a_block_device_learns_who_the_first_is(device):
    async with opened(device):
        error = await refusal(device)
        assert isinstance(error, ImageBusy)
        assert f"pid {os.getpid()}" in str(error)


@pytest.mark.parametrize(
    ("head", "served"),
    [pytest.param(b"LUKS\xba\xbe", True, id="luks"), pytest.param(b"QFI\xfb", False, id="qcow2")],
)
async def test_of_what_a_block_device_looks_like_only_luks_is_the_guests(device, head, served):
    """Virtualisation puts qcow2 on logical volumes; whole disks are encrypted by their guests."""
    with device.open("r+b") as file:
        file.write(head)
    if served:
        assert (await limits(device)).is_block_device
    else:
        assert "--format raw" in (await refusal(device)).hint


async def test_a_read_only_block_device_is_served_only_read_only(backing):
    with loop_device(backing, "--read-only") as device:
        assert "--read-only" in (await refusal(device)).hint
        assert (await limits(device, read_only=True)).size == DISK_BYTES


# ---- file systems


async def test_a_file_on_xfs_has_the_alignment_of_the_disk_below(xfs):
    await store.create(str(xfs / "disk.img"), MIB, preallocate=True)
    found = await limits(xfs / "disk.img")
    assert (found.logical_block_size, found.physical_block_size) == (4096, 4096)
    assert found.discard_granularity == 4096
    assert "--cache writeback" in (await refusal(xfs / "disk.img", block=512)).hint
    assert (await limits(xfs / "disk.img", direct=False)).logical_block_size == 512


@pytest.mark.parametrize("place", ["btrfs", "tmpfs"])
async def test_alignment_is_found_where_the_kernel_does_not_tell(place, request):
    path = request.getfixturevalue(place) / "disk.img"
    await store.create(str(path), MIB, preallocate=False)
    async with opened(path) as image:
        aligned = image.limits.memory_alignment
        assert aligned >= 1
        assert image.limits.discard_granularity == 4096
        # The alignment that was found must hold in earnest.
        block = image.limits.logical_block_size
        with mmap.mmap(-1, block + aligned) as buffer, memoryview(buffer) as memory:
            memory[aligned:] = b"x" * block
            assert os.pwritev(image.fd, [memory[aligned:]], block) == block
    assert path.read_bytes()[block : 2 * block] == b"x" * block
    assert (await store.info(str(path))).filesystem == place


BEHIND_A_CHROOT = """
import os, sys
from blkd.image import kernel
image = os.open(sys.argv[1], os.O_RDONLY)
os.chroot(sys.argv[2])
print(kernel.filesystem(image))
"""


@pytest.mark.parametrize("place", ["btrfs", "xfs", "tmpfs"])
async def test_a_file_system_is_known_where_its_mount_is_in_no_list(place, request, tmp_path):
    path = request.getfixturevalue(place) / "disk.img"
    await store.create(str(path), MIB, preallocate=False)
    (tmp_path / "root" / "proc").mkdir(parents=True)
    mount_and_go = 'mount -t proc none "$4/proc" && exec "$1" -c "$2" "$3" "$4"'
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", mount_and_go, "sh"]
    assert run(*command, sys.executable, BEHIND_A_CHROOT, path, tmp_path / "root") == place


async def test_a_file_in_memory_asks_nothing_of_buffers(tmpfs):
    await store.create(str(tmpfs / "disk.img"), MIB, preallocate=False)
    found = await limits(tmpfs / "disk.img")
    assert (found.logical_block_size, found.memory_alignment) == (512, 1)


async def test_a_file_on_a_disk_asks_of_buffers_what_the_disk_does(ext2):
    """The kernel tells of no alignment there, and a hole may be read at any."""
    await store.create(str(ext2 / "disk.img"), MIB, preallocate=False)
    disk = (ext2 / "disk.img").stat().st_dev
    queue = Path(f"/sys/dev/block/{os.major(disk)}:{os.minor(disk)}/queue")
    asked = int((queue / "dma_alignment").read_text()) + 1
    found = await limits(ext2 / "disk.img")
    assert found.memory_alignment == min(max(asked, 2), found.logical_block_size)


async def test_a_read_only_file_system_is_served_only_read_only(tmpfs):
    path = tmpfs / "disk.img"
    await store.create(str(path), MIB, preallocate=False)
    run("mount", "-o", "remount,ro", tmpfs)
    assert "--read-only" in (await refusal(path)).hint
    assert (await limits(path, read_only=True)).size == MIB


async def test_a_full_disk_under_preallocation_leaves_nothing_behind(tmpfs):
    path = tmpfs / "disk.img"
    with pytest.raises(ImageError) as refused:
        await store.create(str(path), 16 * MIB, preallocate=True)
    assert "free" in refused.value.hint
    assert not list(tmpfs.iterdir())
    assert os.statvfs(tmpfs).f_bavail * os.statvfs(tmpfs).f_frsize == 8 * MIB


async def test_a_preallocated_image_does_not_grow_beyond_the_space_there_is(tmpfs):
    path = tmpfs / "disk.img"
    await store.create(str(path), 4 * MIB, preallocate=True)
    async with opened(path) as image:
        with pytest.raises(ImageError, match="No space"):
            await image.resize(16 * MIB)
        assert image.limits.size == path.stat().st_size == 4 * MIB
        assert os.statvfs(tmpfs).f_bavail * os.statvfs(tmpfs).f_frsize == 4 * MIB
        await image.resize(6 * MIB)
    assert path.stat().st_blocks * 512 == 6 * MIB


async def test_a_preallocated_image_grows_where_no_space_can_be_taken_ahead(ext2):
    path = ext2 / "disk.img"
    await store.create(str(path), 2 * MIB, preallocate=True)
    async with opened(path) as image:
        await image.resize(4 * MIB)
        assert image.limits.size == path.stat().st_size == 4 * MIB


async def test_the_doctor_sees_that_a_sparse_image_may_fill_its_disk(tmpfs):
    await store.create(str(tmpfs / "disk.img"), 16 * MIB, preallocate=False)
    checks = {check.name: check for check in examine(str(tmpfs / "disk.img"))}
    assert "I/O errors" in checks["space"].hint


async def test_space_is_taken_by_writing_where_it_cannot_be_reserved(ext2):
    path = ext2 / "disk.img"
    await store.create(str(path), 4 * MIB + 512, preallocate=True)
    found = await store.info(str(path))
    assert found.allocated >= found.size == 4 * MIB + 512
    assert path.read_bytes() == bytes(found.size)


async def test_a_disk_filled_by_writing_leaves_nothing_behind(ext2):
    with pytest.raises(ImageError, match="No space"):
        await store.create(str(ext2 / "disk.img"), 2 * DISK_BYTES, preallocate=True)
    assert not (ext2 / "disk.img").exists()


async def test_a_cancelled_creation_leaves_nothing_behind(ext2):
    path = ext2 / "disk.img"
    making = asyncio.ensure_future(store.create(str(path), DISK_BYTES // 2, preallocate=True))
    async with asyncio.timeout(10):
        # A file tells nobody of its growth, so there is no event to wait for.
        while not path.exists() or path.stat().st_blocks == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert not path.exists()


# ---- locks, with QEMU on the other side


@contextlib.contextmanager
def qemu_guest(path, pidfile, *, read_only):
    """A virtual machine, never started, whose disk `path` is."""
    mode = "on" if read_only else "off"
    run(
        "qemu-system-x86_64",
        *("-machine", "q35", "-accel", "tcg", "-display", "none", "-nodefaults", "-S"),
        *("-blockdev", f"driver=file,node-name=file,filename={path},read-only={mode}"),
        *("-blockdev", f"driver=raw,node-name=raw,file=file,read-only={mode}"),
        *("-device", "virtio-blk-pci,drive=raw"),
        *("-daemonize", "-pidfile", pidfile),
    )
    with ended(int(pidfile.read_text())):
        yield


@contextlib.contextmanager
def storage_daemon(path, pidfile, *, writable):
    """qemu-storage-daemon exporting `path`."""
    mode = "on" if writable else "off"
    socket = f"addr.type=unix,addr.path={pidfile}.sock"
    run(
        "qemu-storage-daemon",
        *("--blockdev", f"driver=file,node-name=file,filename={path}"),
        *("--export", f"type=vhost-user-blk,id=export,node-name=file,writable={mode},{socket}"),
        *("--daemonize", "--pidfile", pidfile),
    )
    with ended(int(pidfile.read_text())):
        yield


@contextlib.contextmanager
def ended(pid):
    handle = os.pidfd_open(pid)
    try:
        yield
    finally:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)


def qemu_io(path, *options):
    """The complaint of a qemu-io that tries to use `path`, empty if it has none."""
    return subprocess.run(
        ["qemu-io", "-f", "raw", *options, str(path)], check=False, capture_output=True, text=True
    ).stderr


WRITES = ("-c", "write 0 4k")
READS = ("-r", "-c", "read 0 4k")


async def test_qemu_cannot_write_what_is_being_served(disk):
    async with opened(disk):
        assert 'Failed to get "write" lock' in qemu_io(disk, *WRITES)
    assert qemu_io(disk, *WRITES) == ""


async def test_qemu_cannot_resize_what_is_being_served(disk):
    async with opened(disk):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            run("qemu-img", "resize", "-f", "raw", disk, "2M")
    assert "lock" in refused.value.stderr
    assert disk.stat().st_size == MIB


async def test_a_guest_of_qemu_cannot_start_on_what_is_being_served(disk, tmp_path):
    async with opened(disk):
        for read_only in (False, True):
            with (
                pytest.raises(subprocess.CalledProcessError) as refused,
                qemu_guest(disk, tmp_path / "pid", read_only=read_only),
            ):
                pass
            assert "lock" in refused.value.stderr


async def test_qemu_reads_but_does_not_write_what_is_served_read_only(disk, tmp_path):
    async with opened(disk, read_only=True):
        assert qemu_io(disk, *READS) == ""
        assert 'Failed to get "write" lock' in qemu_io(disk, *WRITES)
        with qemu_guest(disk, tmp_path / "pid", read_only=True):
            pass


@pytest.mark.parametrize("read_only", [False, True], ids=["writing", "reading"])
async def test_what_a_guest_of_qemu_writes_is_not_served(disk, tmp_path, read_only):
    with qemu_guest(disk, tmp_path / "pid", read_only=False):
        error = await refusal(disk, read_only=read_only)
    assert isinstance(error, ImageBusy)
    assert "qemu-system" in str(error)


async def test_what_the_storage_daemon_writes_is_not_served(disk, tmp_path):
    with storage_daemon(disk, tmp_path / "pid", writable=True):
        error = await refusal(disk)
        assert isinstance(error, ImageBusy)
        assert "qemu-storage-da" in str(error)  # the kernel keeps 15 characters
        assert isinstance(await refusal(disk, read_only=True), ImageBusy)


async def test_what_a_guest_of_qemu_reads_is_served_read_only(disk, tmp_path):
    with qemu_guest(disk, tmp_path / "pid", read_only=True):
        async with opened(disk, read_only=True):
            pass
        assert isinstance(await refusal(disk), ImageBusy)


async def test_block_devices_are_locked_like_files(device):
    async with opened(device):
        assert "lock" in qemu_io(device, *WRITES)
    assert qemu_io(device, *WRITES) == ""
