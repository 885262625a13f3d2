# SPDX-License-Identifier: Apache-2.0
"""Images on whatever file system the tests run on: what opens, what is refused and why."""

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.diagnosis import examine
from blkd.errors import ImageBusy, ImageError
from blkd.image import kernel, lock, raw, store
from blkd.image.base import Opening
from harness.daemon import image as image_of

MIB = 1 << 20
NOBODY = 65534

FACTS = kernel.Facts(
    is_block_device=False,
    size=MIB,
    offset_alignment=512,
    memory_alignment=512,
    physical_block_size=4096,
    optimal_io_size=0,
    discard_granularity=4096,
    punches=True,
)


@pytest.fixture
def disk(tmp_path):
    return image_of(tmp_path / "disk.img", MIB)


@contextlib.asynccontextmanager
async def opened(path, *, read_only=False, direct=False, block=None, image_format=None):
    opening = Opening(
        read_only=read_only, direct=direct, logical_block_size=block, image_format=image_format
    )
    image = await raw.open_raw(str(path), opening)
    with contextlib.closing(image):
        yield image


async def refusal(path, **how):
    with pytest.raises(ImageError) as refused:
        async with opened(path, **how):
            pass
    assert str(path) in str(refused.value)
    return refused.value


# ---- what can be served


async def test_an_image_is_measured_when_opened(disk):
    async with opened(disk) as image:
        limits = image.limits
        assert (limits.size, limits.logical_block_size, limits.memory_alignment) == (MIB, 512, 1)
        assert not limits.is_block_device
        assert not os.get_inheritable(image.fd)


async def test_a_block_size_that_was_asked_for_is_taken(disk):
    async with opened(disk, block=4096) as image:
        assert image.limits.logical_block_size == 4096
        assert image.limits.physical_block_size >= 4096


async def test_closing_twice_closes_once(disk):
    async with opened(disk) as image:
        fd = image.fd
        image.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        image.close()


BEGINNINGS = {
    "qcow2": b"QFI\xfb\0\0\0\x03",
    "qed": b"QED\0",
    "vmdk": b"KDMV",
    "vhdx": b"vhdxfile",
    "vhd": b"conectix",
    "vdi": b"<<< Oracle VM VirtualBox Disk Image >>>",
    "parallels": b"WithouFreSpacExt",
    "luks": b"LUKS\xba\xbe\0\x02",
}


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("read_only", [False, True], ids=["writing", "reading"])
@pytest.mark.parametrize("name", BEGINNINGS)
async def test_a_file_of_another_format_is_refused_unless_it_is_said_to_be_raw(
    disk, name, read_only, direct
):
    disk.write_bytes(BEGINNINGS[name].ljust(MIB, b"\0"))
    error = await refusal(disk, read_only=read_only, direct=direct)
    assert f"like a {name} image" in str(error)
    assert "--format raw" in error.hint
    assert "qemu-img convert" in error.hint
    async with opened(disk, read_only=read_only, direct=direct, image_format="raw") as image:
        assert image.limits.size == MIB


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("size", [1, 512, 1000, 4096, 196616])
async def test_no_hint_is_to_pad_an_image_of_another_format(disk, size, direct):
    disk.write_bytes(b"QFI\xfb".ljust(size, b"\0")[: max(size, 4)])
    error = await refusal(disk, direct=direct)
    assert "qcow2" in str(error)
    assert "truncate" not in error.hint


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("size", [1024, 4096 + 512, MIB + 512, MIB])
async def test_a_raw_disk_with_a_vhd_behind_it_is_refused(disk, size, direct):
    disk.write_bytes(bytes(size - 512) + b"conectix".ljust(512, b"\0"))
    assert "vhd" in str(await refusal(disk, direct=direct))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xebc\x90".ljust(510, b"\0") + b"\x55\xaa", id="boot-record"),
        pytest.param(bytes(32768) + b"\x01CD001", id="iso-9660"),
        pytest.param(b" QFI\xfb", id="qcow2-elsewhere"),
    ],
)
async def test_a_raw_disk_is_taken_for_what_it_is(disk, head):
    disk.write_bytes(head.ljust(MIB, b"\0"))
    async with opened(disk):
        pass


async def test_measuring_leaves_the_content_as_it_was(disk):
    content = os.urandom(MIB)
    disk.write_bytes(content)
    async with opened(disk, direct=True):
        pass
    assert disk.read_bytes() == content


# ---- what cannot


async def test_a_missing_image_is_refused_with_the_command_that_makes_it(tmp_path):
    error = await refusal(tmp_path / "none.img")
    assert "image create" in error.hint


async def test_a_directory_is_no_image(tmp_path):
    assert "a directory" in str(await refusal(tmp_path))


async def test_a_named_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    async with asyncio.timeout(5):
        assert "named pipe" in str(await refusal(tmp_path / "pipe"))


async def test_a_character_device_is_no_image():
    assert "character device" in str(await refusal(Path("/dev/null")))


async def test_a_socket_is_no_image(tmp_path):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "sock"))
        assert "a socket" in str(await refusal(tmp_path / "sock"))


async def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.img").touch()
    assert "empty" in str(await refusal(tmp_path / "empty.img"))


@pytest.mark.parametrize(("size", "block"), [(MIB + 1, None), (MIB + 512, 4096)])
async def test_a_size_that_is_not_whole_blocks_is_refused(disk, size, block):
    os.truncate(disk, size)
    error = await refusal(disk, block=block)
    assert str(size) in str(error)
    assert f"%{block or 512}" in error.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_a_file_of_somebody_else_is_refused(disk):
    os.seteuid(NOBODY)
    try:
        error = await refusal(disk)
    finally:
        os.seteuid(0)
    assert "Permission denied" in str(error)
    assert "owner" in error.hint


# ---- who else may use it


async def test_a_second_writer_learns_who_the_first_is(disk):
    async with opened(disk):
        with pytest.raises(ImageBusy) as refused:
            async with opened(disk):
                pass
    assert f"pid {os.getpid()}" in str(refused.value)


async def test_a_reader_is_refused_while_there_is_a_writer(disk):
    async with opened(disk):
        assert isinstance(await refusal(disk, read_only=True), ImageBusy)


async def test_readers_share_and_keep_writers_out(disk):
    async with opened(disk, read_only=True), opened(disk, read_only=True):
        assert isinstance(await refusal(disk), ImageBusy)


async def test_closing_gives_up_the_lock(disk):
    async with opened(disk):
        pass
    async with opened(disk):
        pass


async def test_the_lock_outlives_others_who_open_and_close_the_file(disk):
    async with opened(disk):
        disk.read_bytes()
        assert isinstance(await refusal(disk), ImageBusy)


async def test_a_refused_image_leaves_no_descriptor(disk):
    def descriptors():
        return set(Path("/proc/self/fd").iterdir())

    os.truncate(disk, 1)
    await refusal(disk)  # the executor's first use opens descriptors of its own
    before = descriptors()
    await refusal(disk)
    assert descriptors() == before


async def test_a_cancelled_opening_leaves_no_lock(disk):
    # With one thread the cancelled opening runs to its end before the next begins.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    how = Opening(read_only=False, direct=False, logical_block_size=None)
    opening = asyncio.ensure_future(raw.open_raw(str(disk), how))
    await asyncio.sleep(0)  # let it start
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(ImageBusy):
                async with opened(disk):
                    break
            await asyncio.sleep(0)


def test_lock_modes_use_the_bytes_that_qemu_uses():
    assert lock.WRITER.lock_bytes == [100, 101, 103, 201, 203]
    assert lock.WRITER.opposed_bytes == [200, 201, 203, 101, 103]
    assert lock.READER.lock_bytes == [100, 201, 203]
    assert lock.READER.opposed_bytes == [200, 101, 103]


# ---- resizing


async def test_a_file_grows_and_shrinks_on_request(disk):
    async with opened(disk) as image:
        await image.resize(2 * MIB)
        assert image.limits.size == disk.stat().st_size == 2 * MIB
        await image.resize(MIB)
        assert image.limits.size == disk.stat().st_size == MIB


@pytest.mark.parametrize("size", [0, -512, MIB + 1])
async def test_a_resize_to_no_whole_blocks_is_refused(disk, size):
    async with opened(disk) as image:
        with pytest.raises(ImageError, match=str(size)):
            await image.resize(size)
    assert disk.stat().st_size == MIB


async def test_a_read_only_image_is_not_resized(disk):
    async with opened(disk, read_only=True) as image:
        with pytest.raises(ImageError, match="read-only"):
            await image.resize(2 * MIB)


async def test_a_resize_beyond_what_the_kernel_allows_is_refused(disk):
    async with opened(disk) as image:
        with pytest.raises(ImageError, match="cannot be made"):
            await image.resize((1 << 63) - 512)
        assert image.limits.size == MIB


async def test_refresh_sees_what_others_did_to_the_size(disk):
    async with opened(disk) as image:
        assert not await image.refresh()
        os.truncate(disk, 3 * MIB + 100)
        assert await image.refresh()
        assert image.limits.size == 3 * MIB
        os.truncate(disk, 0)
        assert await image.refresh()
        assert image.limits.size == 0


# ---- limits


@given(
    st.builds(
        kernel.Facts,
        is_block_device=st.booleans(),
        size=st.integers(0, 1 << 40) | st.integers(0, 1 << 20).map(lambda n: n << 12),
        offset_alignment=st.sampled_from([512, 1024, 4096, 8192]),
        memory_alignment=st.sampled_from([1, 4, 512]),
        physical_block_size=st.sampled_from([512, 4096, 65536]),
        optimal_io_size=st.integers(0, 1 << 24),
        discard_granularity=st.sampled_from([0, 512, 4096, 65536]),
        punches=st.booleans(),
    ),
    st.sampled_from([None, 512, 4096]),
)
def test_limits_never_contradict_each_other(facts, wanted):
    try:
        limits = raw.limits_of(facts, "disk", wanted)
    except ImageError:
        block = wanted or (512 if facts.offset_alignment == 512 else 4096)
        assert block < facts.offset_alignment or facts.size == 0 or facts.size % block
        return
    block = limits.logical_block_size
    assert block in (512, 4096)
    assert block % facts.offset_alignment == 0
    assert block == wanted or wanted is None
    assert limits.size > 0
    assert limits.size % block == 0
    assert limits.physical_block_size % block == 0
    assert limits.optimal_io_size % limits.physical_block_size == 0
    assert limits.discard_granularity % block == 0
    assert bool(limits.discard_granularity) == bool(facts.discard_granularity)


def test_blocks_smaller_than_direct_io_needs_are_refused_with_the_right_ones():
    with pytest.raises(ImageError) as refused:
        raw.limits_of(dataclasses.replace(FACTS, offset_alignment=4096), "disk", 512)
    assert "--logical-block-size 4096" in refused.value.hint
    assert "--cache writeback" in refused.value.hint


async def serial_of(path):
    async with opened(path) as image:
        return raw.default_serial(image.identity)


async def test_a_file_s_serial_is_its_resolved_path_s(disk, tmp_path):
    """Guests know their disks by it since version 0.1: it never changes."""
    digest = hashlib.sha256(os.fsencode(disk.resolve())).hexdigest()
    (tmp_path / "link").symlink_to(disk)
    for path in (disk, f"{tmp_path}/./{disk.name}", tmp_path / "link"):
        assert await serial_of(path) == f"blkd{digest[:16]}"
    other = tmp_path / "other.img"
    other.write_bytes(bytes(MIB))
    assert await serial_of(other) != await serial_of(disk)


DISK = "devices/pci0000:00/block/sda"
SYSFS = {
    "devices/virtual/block/dm-3": {"dm/uuid": "LVM-abc\n", "dm/name": "vg-lv\n"},
    "devices/virtual/block/dm-4": {"dm/uuid": "\n"},
    DISK: {"device/wwid": "naa.5000c500\n"},
    f"{DISK}/sda2": {"partition": "2\n", "uevent": "PARTN=2\nPARTUUID=1234-02\n"},
    "devices/pci0000:01/nvme0n1": {"wwid": "eui.0025\n"},
    "devices/virtual/block/loop0": {"size": "8\n"},
    "devices/virtual/block/loop0/loop0p1": {"partition": "1\n", "uevent": "PARTUUID=AB-01\n"},
    "devices/virtual/block/loop0/loop0p2": {"partition": "2\n", "uevent": "PARTN=2\n"},
}


@pytest.fixture
def sysfs(tmp_path):
    """A tree like sysfs: where to find a device by its number, and what udev has noted."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "udev").mkdir()
    for minor, (place, facts) in enumerate(SYSFS.items()):
        for name, text in facts.items():
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).write_text(text)
        (tmp_path / "dev" / f"7:{minor}").symlink_to(tmp_path / place)
    return lambda place: kernel.device_identity(
        os.makedev(7, list(SYSFS).index(place)), tmp_path / "dev", tmp_path / "udev"
    )


@pytest.mark.parametrize(
    ("place", "identity"),
    [
        ("devices/virtual/block/dm-3", "dm-uuid-LVM-abc"),
        ("devices/virtual/block/dm-4", None),
        (DISK, "wwid-naa.5000c500"),
        (f"{DISK}/sda2", "wwid-naa.5000c500-part2"),
        ("devices/pci0000:01/nvme0n1", "wwid-eui.0025"),
        ("devices/virtual/block/loop0", None),
        ("devices/virtual/block/loop0/loop0p1", "partuuid-ab-01"),
        ("devices/virtual/block/loop0/loop0p2", None),
    ],
)
def test_a_device_is_known_by_what_does_not_change(sysfs, place, identity):
    assert sysfs(place) == identity


def test_a_partition_s_uuid_is_what_udev_noted_where_the_kernel_tells_none(sysfs, tmp_path):
    place = "devices/virtual/block/loop0/loop0p2"
    (tmp_path / "udev" / f"b7:{list(SYSFS).index(place)}").write_text(
        "E:ID_PART_ENTRY_UUID=cd-02\n"
    )
    assert sysfs(place) == "partuuid-cd-02"


# ---- images at rest


@pytest.mark.parametrize("preallocate", [False, True], ids=["sparse", "preallocated"])
async def test_a_created_image_has_its_size_and_takes_the_space_asked_for(tmp_path, preallocate):
    path = tmp_path / "new.img"
    await store.create(str(path), 4 * MIB, preallocate=preallocate)
    assert path.read_bytes() == bytes(4 * MIB)
    found = await store.info(str(path))
    assert (found.kind, found.size) == ("file", 4 * MIB)
    assert (found.allocated >= found.size) is preallocate


async def test_a_created_image_is_its_owners_alone(tmp_path):
    await store.create(str(tmp_path / "new.img"), MIB, preallocate=False)
    assert (tmp_path / "new.img").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("preallocate", [False, True], ids=["sparse", "preallocated"])
async def test_an_image_grows_as_it_was_made(tmp_path, preallocate):
    path = tmp_path / "new.img"
    await store.create(str(path), 4 * MIB, preallocate=preallocate)
    async with opened(path) as image:
        await image.resize(8 * MIB)
    found = await store.info(str(path))
    assert found.size == 8 * MIB
    assert (found.allocated >= found.size) is preallocate
    assert path.read_bytes() == bytes(8 * MIB)


async def test_an_existing_file_is_never_overwritten(disk):
    disk.write_bytes(b"precious")
    with pytest.raises(ImageError, match="exists"):
        await store.create(str(disk), MIB, preallocate=False)
    assert disk.read_bytes() == b"precious"


@pytest.mark.parametrize("size", [0, -512, 1000])
async def test_an_image_of_no_whole_sectors_is_not_created(tmp_path, size):
    with pytest.raises(ImageError, match=str(size)):
        await store.create(str(tmp_path / "new.img"), size, preallocate=False)
    assert not list(tmp_path.iterdir())


async def test_a_size_that_the_file_system_cannot_hold_leaves_nothing(tmp_path):
    with pytest.raises(ImageError, match="cannot be created"):
        await store.create(str(tmp_path / "new.img"), (1 << 63) - 512, preallocate=False)
    assert not list(tmp_path.iterdir())


async def test_an_image_in_no_directory_is_not_created(tmp_path):
    with pytest.raises(ImageError) as refused:
        await store.create(str(tmp_path / "no" / "new.img"), MIB, preallocate=False)
    assert "directory" in refused.value.hint


async def test_info_looks_at_an_image_in_use_and_names_its_user(disk):
    async with opened(disk):
        found = await store.info(str(disk))
    assert [holder.pid for holder in found.locked_by] == [os.getpid()]
    assert (await store.info(str(disk))).locked_by == []


# ---- the doctor


def test_the_doctor_finds_a_good_image_good(disk):
    checks = {check.name: check for check in examine(str(disk))}
    assert checks["image"].ok
    assert checks["kernel"].ok
    assert "to allocate" in checks["space"].detail


def test_the_doctor_names_the_files_that_have_probes(disk):
    (check,) = (check for check in examine(str(disk)) if check.name == "USDT probes")
    assert check.ok is None
    block, ring = map(Path, check.detail.split())
    assert b"request__submit" in block.read_bytes()
    assert b"blkd\0kick\0" in ring.read_bytes()


def test_what_only_other_devices_need_keeps_no_disk_from_working(disk):
    checks = {check.name: check for check in examine(str(disk))}
    assert checks["network taps"].ok is None
    assert checks["vsock of the host"].ok is None


def test_the_doctor_says_what_a_sandbox_can_be_made_of(disk):
    checks = {check.name: check for check in examine(str(disk))}
    assert checks["sandbox: landlock"].detail.startswith("version")
    assert checks["sandbox: seccomp"].detail == "system calls can be filtered"
    assert "mount, net, ipc, uts" in checks["sandbox: namespaces"].detail
    assert checks["sandbox: io_uring"].detail == "kept to its purpose"
    assert all(check.ok is None for name, check in checks.items() if name.startswith("sandbox"))


@pytest.mark.parametrize(
    ("limit", "hint"),
    [
        pytest.param(8 << 20, "enough for 40 workers", id="limited"),
        pytest.param(resource.RLIM_INFINITY, None, id="unlimited"),
    ],
)
def test_the_doctor_says_for_how_many_workers_memory_can_be_locked(monkeypatch, limit, hint):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    (check,) = (check for check in examine(None) if check.name == "locked memory")
    assert check.ok is None
    assert check.hint is None if hint is None else check.hint.startswith(hint)


def test_the_doctor_knows_other_formats(disk):
    disk.write_bytes(b"QFI\xfb".ljust(1000, b"\0"))
    checks = {check.name: check for check in examine(str(disk))}
    assert checks["format"].ok is False
    assert "qcow2" in checks["format"].detail
    assert not any("blocks" in (check.hint or "") for check in checks.values())


def test_the_doctor_says_why_an_image_cannot_be_served(tmp_path):
    checks = {check.name: check for check in examine(str(tmp_path))}
    assert checks["image"].ok is False
    assert "a directory" in checks["image"].detail


async def test_the_doctor_names_who_holds_an_image(disk):
    async with opened(disk):
        checks = {check.name: check for check in examine(str(disk))}
    assert f"pid {os.getpid()}" in checks["lock"].detail
