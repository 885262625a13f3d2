# SPDX-License-Identifier: Apache-2.0
"""An image whose lock goes from one process to another and back, each end by itself."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from blkd.errors import ImageBusy, ImageError, SyncFailed
from blkd.image import raw
from blkd.image.base import Opening
from harness.daemon import image as image_of
from harness.fuse import WRITE, FileSystem

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    return image_of(tmp_path / "disk.img", MIB)


@contextlib.asynccontextmanager
async def opened(path, *, incoming=False, read_only=False):
    opening = Opening(read_only=read_only, direct=False, logical_block_size=None, incoming=incoming)
    image = await raw.open_raw(str(path), opening)
    with contextlib.closing(image):
        yield image


def adopted(image, *, read_only=False, is_locked):
    """What another process makes of a copy of an image's descriptor."""
    opening = Opening(read_only=read_only, direct=False, logical_block_size=512)
    return raw.RawImage.adopt(image.path, os.dup(image.fd), opening, is_locked=is_locked)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(raw, "LOCK_LIMIT", 0.1)


def locks(image):
    """The lock lines of an open image."""
    lines = Path(f"/proc/self/fdinfo/{image.fd}").read_text().splitlines()
    return [line for line in lines if line.startswith("lock:")]


def descriptors():
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only


async def test_an_incoming_image_is_measured_and_not_locked(disk):
    async with opened(disk), opened(disk, incoming=True) as incoming:
        assert incoming.limits.size == MIB
        assert not incoming.is_locked
        assert locks(incoming) == []


async def test_the_lock_goes_over_and_the_descriptor_stays(disk):
    async with opened(disk) as ours, opened(disk, incoming=True) as theirs:
        numbers = ours.fd, theirs.fd
        await ours.release_lock()
        await theirs.take_lock()
        assert (ours.is_locked, theirs.is_locked) == (False, True)
        assert (ours.fd, theirs.fd) == numbers
        assert locks(ours) == []
        assert locks(theirs)
        assert not os.get_inheritable(theirs.fd)


@pytest.mark.usefixtures("impatient")
async def test_a_copy_of_the_descriptor_keeps_no_lock(disk):
    async with opened(disk) as ours, opened(disk, incoming=True) as theirs:
        with os.fdopen(os.dup(ours.fd)):  # as another process may have one
            await ours.release_lock()
            await theirs.take_lock()
        assert theirs.is_locked


@pytest.mark.parametrize("read_only", [False, True])
async def test_an_image_that_comes_locked_is_looked_at_and_not_locked(disk, read_only):
    async with opened(disk, read_only=read_only) as ours:
        theirs = adopted(ours, read_only=read_only, is_locked=True)
        theirs.close()
        assert locks(ours)


async def test_an_image_that_was_to_come_locked_is_refused_without(disk):
    async with opened(disk, incoming=True) as ours:
        with pytest.raises(ImageError, match="came without the lock"):
            adopted(ours, is_locked=True)
        assert locks(ours) == []


async def test_both_steps_may_be_asked_for_twice(disk):
    async with opened(disk) as image:
        await image.take_lock()
        await image.release_lock()
        await image.release_lock()
        assert not image.is_locked
        await image.take_lock()
        assert image.is_locked


async def test_no_descriptor_is_left_over(disk):
    async with opened(disk):
        pass  # the executor's first use opens descriptors of its own
    before = descriptors()
    async with opened(disk) as image:
        for _ in range(3):
            await image.release_lock()
            await image.take_lock()
    assert descriptors() == before


@pytest.mark.usefixtures("impatient")
async def test_an_image_that_another_has_locked_is_not_locked(disk):
    async with opened(disk), opened(disk, incoming=True) as incoming:
        before = descriptors()
        with pytest.raises(ImageBusy):
            await incoming.take_lock()
        assert not incoming.is_locked
        assert descriptors() == before


async def test_the_size_is_measured_when_the_image_is_locked(disk):
    async with opened(disk, incoming=True) as incoming:
        os.truncate(disk, 2 * MIB)
        await incoming.take_lock()
        assert incoming.limits.size == 2 * MIB


async def test_an_image_is_resized_only_while_it_is_locked(disk):
    async with opened(disk) as image:
        await image.release_lock()
        with pytest.raises(ImageError, match="not locked"):
            await image.resize(2 * MIB)
        await image.take_lock()
        await image.resize(2 * MIB)


async def test_what_cannot_be_made_durable_is_not_handed_over(disk, monkeypatch):
    def fail(_fd):
        raise OSError(5, "Input/output error")

    async with opened(disk) as image:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(ImageError, match="durable"):
            await image.release_lock()
        assert image.is_locked
        assert locks(image)


async def test_an_image_that_is_only_read_is_locked_for_reading_at_once(disk):
    async with (
        opened(disk, read_only=True) as one,
        opened(disk, read_only=True, incoming=True) as other,
    ):
        await one.release_lock()
        assert one.is_locked
        assert other.is_locked
        assert locks(one)
        assert locks(other)


@pytest.mark.skipif(os.geteuid() != 0, reason="FUSE is mounted as root")
async def test_what_a_write_back_lost_keeps_the_lock(tmp_path):
    with FileSystem(tmp_path / "fuse", MIB, writeback=True) as storage:
        async with opened(storage.path) as image:
            storage.answers[WRITE] = lambda: errno.EINTR
            os.pwrite(image.fd, b"w" * 4096, 0)
            with pytest.raises(SyncFailed):
                await image.release_lock()
            assert image.is_locked
            storage.answers.clear()


def test_a_place_is_not_taken_for_an_open_image(disk):
    place = os.open(disk, os.O_PATH)  # which anybody can have of any file
    opening = Opening(read_only=True, direct=False, logical_block_size=512)
    with pytest.raises(ImageError, match="open in another way"):
        raw.RawImage.adopt(str(disk), place, opening, is_locked=False)
