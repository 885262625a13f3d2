# SPDX-License-Identifier: Apache-2.0
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.daemon.record import ExportRecord, overlaid
from blkd.errors import ConfigError

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
text = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), text)
settings = st.dictionaries(text, plain | st.lists(plain), max_size=5)
records = st.builds(
    ExportRecord,
    name=names,
    device=st.sampled_from(["blk", "net", "vsock"]),
    wanted=st.sampled_from(["serving", "stopped"]),
    settings=settings,
    pinned=settings,
    user=st.none() | st.integers(1, 2**32 - 2),
    pending=st.lists(text).map(tuple),
)

WEB = ExportRecord(
    name="web",
    device="blk",
    wanted="serving",
    settings={"image": "/srv/web.img", "queues": 8},
    pinned={"serial": "x"},
)


@given(records)
def test_a_record_survives_the_disk(record):
    assert ExportRecord.read(record.write(), "f", record.name) == record


@given(records, st.data())
def test_a_torn_record_is_refused(record, data):
    content = record.write()
    kept = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ConfigError, match=r"f:\d+: "):
        ExportRecord.read(content[:kept], "f", record.name)


@pytest.mark.parametrize(
    ("was", "becomes", "line", "reason"),
    [
        pytest.param("version = 1", "version = 2", 2, "Invalid enum value 2", id="later-version"),
        pytest.param('"web"', '"db"', 3, "is the record of db, not of web", id="another's"),
        pytest.param('"blk"', '"scsi"', 4, "Invalid enum value 'scsi'", id="device"),
        pytest.param("wanted", "wished", 5, "unknown field `wished`", id="unknown-field"),
        pytest.param("[pinned]", "[pinned", 11, "is no TOML", id="syntax"),
        pytest.param("/srv", "/sr\x01v", 8, "is no TOML", id="control-character"),
        pytest.param("/srv", "/sr\udcffv", 8, "is no UTF-8", id="no-utf-8"),
        pytest.param("# Kept", "PK", 1, "is no TOML", id="foreign"),
        pytest.param("# end\n", "", 13, "is torn", id="torn-between-lines"),
    ],
)
def test_a_record_that_is_none_is_refused_by_line(was, becomes, line, reason):
    content = WEB.write().decode().replace(was, becomes).encode(errors="surrogateescape")
    with pytest.raises(ConfigError, match=re.escape(f"f:{line}: ")) as refused:
        ExportRecord.read(content, "f", "web")
    assert reason in str(refused.value)


def test_what_a_guest_has_seen_stays_pinned():
    pinned = WEB.pin({"serial": "y", "cache": "none", "poll_us": 32, "features_as": None})
    assert pinned.pinned == {"serial": "x", "cache": "none"}
    assert pinned.pin({"cache": "writeback"}) == pinned


def test_a_setting_goes_before_what_is_pinned():
    assert WEB.pin({"queues": 4, "cache": "none"}).effective == {
        "image": "/srv/web.img",
        "queues": 8,
        "cache": "none",
        "serial": "x",
    }


def test_the_serial_outlives_what_is_pinned():
    pinned = WEB.pin({"features_as": "0.1"})
    assert pinned.unpin().pinned == {"serial": "x"}


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        pytest.param({"queues": 2}, {"queues": 2, "cache": "none"}, id="value"),
        pytest.param({"queues": 4}, {"queues": 4, "cache": "none"}, id="the-default-of-now"),
        pytest.param({"queues": None}, {"cache": "none"}, id="open-again"),
        pytest.param({"cache": None}, {"queues": 8}, id="pinned-before"),
        pytest.param({"poll_us": 0}, {"queues": 8, "cache": "none", "poll_us": 0}, id="unseen"),
    ],
)
def test_a_change_goes_before_what_was_pinned(given, effective):
    record = replace(WEB, settings={"queues": 8}, pinned={"queues": 8, "cache": "none"})
    settings = overlaid(record.settings, given)
    settings = {key: value for key, value in settings.items() if (key, value) != ("queues", 4)}
    assert record.change(settings, given).effective == effective
