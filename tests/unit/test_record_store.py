# SPDX-License-Identifier: Apache-2.0
import json
import os
from dataclasses import replace

import msgspec
import pytest

from blkd.daemon.record import ExportRecord
from blkd.daemon.record_store import RecordStore
from blkd.errors import ConfigError, StateError

DEEP = b"a = " + b"[" * 100_000 + b"\n# end\n"
WEB = ExportRecord(
    name="web", device="blk", wanted="serving", settings={"image": "/a"}, pinned={}, user=7
)


@pytest.fixture
async def store(tmp_path):
    store = RecordStore(tmp_path, ExportRecord.read)
    assert await store.load() == {}
    return store


async def test_what_is_written_is_read_by_the_next(store, tmp_path):
    await store.write(WEB)
    await store.write(replace(WEB, wanted="stopped"))
    assert await RecordStore(tmp_path, ExportRecord.read).load() == {
        "web": replace(WEB, wanted="stopped")
    }
    assert [path.name for path in tmp_path.iterdir()] == ["web.toml"]


async def test_what_is_removed_is_gone(store, tmp_path):
    await store.write(WEB)
    await store.remove("web")
    await store.remove("web")
    assert await RecordStore(tmp_path, ExportRecord.read).load() == {}
    await store.write(WEB)
    assert "web" in await RecordStore(tmp_path, ExportRecord.read).load()


async def test_what_was_half_written_is_removed(tmp_path):
    (tmp_path / "web.toml.new").write_bytes(b"versi")
    assert await RecordStore(tmp_path, ExportRecord.read).load() == {}
    assert list(tmp_path.iterdir()) == []


async def test_a_record_stays_whole_while_the_next_is_written(store, tmp_path):
    await store.write(WEB)
    (tmp_path / "web.toml.new").mkdir()  # so that nothing can be written
    with pytest.raises(StateError, match="Is a directory"):
        await store.write(replace(WEB, wanted="stopped"))
    (tmp_path / "web.toml.new").rmdir()
    assert await RecordStore(tmp_path, ExportRecord.read).load() == {"web": WEB}


@pytest.mark.parametrize("content", [b"", b"version = 1\n", b"\xff\n", b"[Unit]\n", DEEP])
async def test_what_is_no_record_is_told_and_never_overwritten(tmp_path, content):
    (tmp_path / "web.toml").write_bytes(content)
    store = RecordStore(tmp_path, ExportRecord.read)
    found = (await store.load())["web"]
    assert isinstance(found, ConfigError)
    assert str(found).startswith(f"{tmp_path}/web.toml:")
    for change in (store.write(WEB), store.remove("web")):
        with pytest.raises(StateError, match="was written by somebody else"):
            await change
    assert (tmp_path / "web.toml").read_bytes() == content


async def test_what_somebody_has_written_since_is_never_overwritten(store, tmp_path):
    await store.write(WEB)
    (tmp_path / "web.toml").write_bytes(b"mine\n")
    (tmp_path / "db.toml").write_bytes(b"mine too\n")
    for change in (
        store.write(replace(WEB, wanted="stopped")),
        store.remove("web"),
        store.write(replace(WEB, name="db")),
    ):
        with pytest.raises(StateError, match="was written by somebody else"):
            await change
    assert (tmp_path / "web.toml").read_bytes() == b"mine\n"
    assert (tmp_path / "db.toml").read_bytes() == b"mine too\n"


async def test_a_link_in_the_place_of_a_new_record_is_not_followed(store, tmp_path):
    (tmp_path / "target").touch()
    (tmp_path / "web.toml.new").symlink_to("target")
    with pytest.raises(StateError):
        await store.write(WEB)
    assert (tmp_path / "target").read_bytes() == b""


async def test_a_file_that_no_export_can_have_is_told_by_a_name_that_can_be_shown(tmp_path):
    for name in (b"\xff.toml", "\u00e4.toml".encode()):
        (tmp_path / os.fsdecode(name)).write_bytes(WEB.write())
    found = await RecordStore(tmp_path, ExportRecord.read).load()
    assert set(found) == {r"\xff", "\u00e4"}
    assert json.loads(msgspec.json.encode({name: str(error) for name, error in found.items()}))


async def test_a_record_of_a_name_that_the_daemon_has_itself_is_none(tmp_path):
    (tmp_path / "blkd.toml").write_bytes(replace(WEB, name="blkd").write())
    assert isinstance((await RecordStore(tmp_path, ExportRecord.read).load())["blkd"], ConfigError)


async def test_nothing_is_left_of_what_cannot_be_written(store, tmp_path):
    (tmp_path / "web.toml").mkdir()
    with pytest.raises(StateError):
        await store.write(WEB)
    assert [path.name for path in tmp_path.iterdir()] == ["web.toml"]
