# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from blkd.daemon import image_files
from blkd.errors import ImageBusy, ImageError
from blkd.image import lock


@pytest.fixture
def places(tmp_path):
    (tmp_path / "images").mkdir()
    return [str(tmp_path / "images")]


async def create(path, places, **options):
    done = []
    settings = {"preallocate": False, "report": done.append, **options}
    await image_files.create(path, places, 4096, **settings)
    return done


async def test_an_image_is_made_listed_and_deleted(places):
    path = f"{places[0]}/a.img"
    await create(path, places)
    assert await image_files.images(places) == [(path, 4096, 0)]
    await image_files.delete(path, places)
    assert await image_files.images(places) == []


async def test_an_image_that_is_there_is_not_made_again(places):
    path = f"{places[0]}/a.img"
    await create(path, places)
    with pytest.raises(ImageError, match=r"a\.img: cannot be created: File exists"):
        await create(path, places)


@pytest.mark.parametrize("way", ["../a.img", "out/a.img", "", "missing/a.img"])
async def test_no_image_is_made_or_deleted_elsewhere(places, tmp_path, way):
    (tmp_path / "images" / "out").symlink_to("..")
    (tmp_path / "a.img").touch()
    for call in (create, image_files.delete):
        with pytest.raises(ImageError):
            await call(f"{places[0]}/{way}", places)
    assert (tmp_path / "a.img").exists()


async def test_an_image_in_use_is_not_deleted(places):
    path = f"{places[0]}/a.img"
    await create(path, places)
    fd = os.open(path, os.O_RDWR)
    lock.acquire(fd, path, lock.READER)
    with pytest.raises(ImageBusy):
        await image_files.delete(path, places)
    os.close(fd)
    await image_files.delete(path, places)


async def test_a_link_is_not_deleted_for_what_it_leads_to(places, tmp_path):
    path = f"{places[0]}/a.img"
    await create(path, places)
    (tmp_path / "images" / "link").symlink_to("a.img")
    with pytest.raises(ImageError):
        await image_files.delete(f"{places[0]}/link", places)
    assert [found for found, *_ in await image_files.images(places)] == [path]


async def test_images_are_found_beneath_but_not_by_links(places, tmp_path):
    (tmp_path / "images" / "inner").mkdir()
    await create(f"{places[0]}/inner/b.img", places)
    await create(f"{places[0]}/a.img", places)
    (tmp_path / "images" / "link.img").symlink_to("a.img")
    os.mkfifo(f"{places[0]}/pipe")
    found = [path for path, *_ in await image_files.images(places)]
    assert found == [f"{places[0]}/a.img", f"{places[0]}/inner/b.img"]
