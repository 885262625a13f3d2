# SPDX-License-Identifier: Apache-2.0
"""Groups that are kept, and who is in them."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.control.daemon_models import AddGroup, ChangeGroup, group_tag
from blkd.daemon.event_list import EventList
from blkd.daemon.group_list import GroupList, Membership
from blkd.daemon.group_record import GroupRecord
from blkd.daemon.record_store import RecordStore
from blkd.errors import (
    ConfigError,
    GroupChanged,
    GroupExists,
    NoSuchGroup,
    RequestRefused,
    StateError,
)
from blkd.statistics.limits_page import Dimension, LimitsPage

GOLD = AddGroup(name="gold", limits={"iops": 4000})


async def groups_of(tmp_path):
    groups = GroupList(RecordStore(tmp_path, GroupRecord.read), EventList())
    await groups.load()
    return groups


@pytest.fixture
async def groups(tmp_path):
    return await groups_of(tmp_path)


def rate(page):
    line = page.granted(Dimension.IOPS_TOTAL, time.monotonic_ns())
    return 0 if line is None else line.rate / Dimension.IOPS_TOTAL.units


async def test_a_group_is_there_again_for_the_next_daemon(groups, tmp_path):
    view, is_new = await groups.add(GOLD)
    assert is_new
    assert await groups.add(GOLD) == (view, False)
    await groups.change("gold", ChangeGroup(limits={"bps": "1M"}), ())
    (found,) = (await groups_of(tmp_path)).list()
    assert (found.name, found.limits) == ("gold", {"iops": 4000, "bps": 1 << 20})


async def test_another_group_of_that_name_is_refused(groups):
    await groups.add(GOLD)
    with pytest.raises(GroupExists, match="there is another group gold"):
        await groups.add(AddGroup(name="gold", limits={"iops": 1}))


async def test_a_group_with_other_limits_than_the_caller_thinks_is_left_alone(groups):
    await groups.add(GOLD)
    with pytest.raises(GroupChanged):
        await groups.change("gold", ChangeGroup(limits={"iops": 1}), [group_tag({"iops": 3})])
    await groups.change("gold", ChangeGroup(limits={"iops": 1}), [group_tag({"iops": 4000})])
    assert groups.get("gold").limits == {"iops": 1}


async def test_the_last_limit_of_a_group_stays(groups):
    await groups.add(GOLD)
    with pytest.raises(ConfigError, match="a group without limits is none"):
        await groups.change("gold", ChangeGroup(limits={"iops": None}), ())
    assert groups.get("gold").limits == {"iops": 4000}


async def test_a_group_with_members_is_not_removed(groups, tmp_path):
    await groups.add(GOLD)
    groups.place("web", Membership("gold", 1, "stopped"))
    with pytest.raises(RequestRefused, match="web is in gold") as refused:
        await groups.remove("gold")
    assert refused.value.hint == "blkd set web group= takes it out"
    groups.place("web", Membership(None, 1, "stopped"))
    assert (await groups.remove("gold")).removed
    assert not (await groups.remove("gold")).removed
    assert list(tmp_path.iterdir()) == []


async def test_a_group_that_an_export_is_about_to_join_is_not_removed(groups):
    await groups.add(GOLD)
    with groups.claimed("gold"), pytest.raises(RequestRefused, match="just being put into gold"):
        await groups.remove("gold")
    assert (await groups.remove("gold")).removed


async def test_nobody_joins_a_group_that_is_none(groups):
    with pytest.raises(ConfigError, match="there is no group gold"), groups.claimed("gold"):
        pass
    with groups.claimed(None):
        pass
    with pytest.raises(NoSuchGroup):
        groups.get("gold")


async def test_a_group_that_cannot_be_forgotten_goes_on(groups, tmp_path):
    await groups.add(GOLD)
    (tmp_path / "gold.toml").write_bytes(b"mine\n")
    with pytest.raises(StateError, match="was written by somebody else"):
        await groups.remove("gold")
    assert groups.get("gold").limits == {"iops": 4000}


async def test_members_are_granted_what_the_group_has(groups):
    await groups.add(GOLD)
    web, db = LimitsPage.empty(), LimitsPage.empty()
    groups.place("web", Membership("gold", 3, "sharing", web))
    groups.place("db", Membership("gold", 1, "sharing", db))
    groups.place("old", Membership("gold", 1, "apart"))
    assert (rate(web), rate(db)) == (3000, 1000)
    assert [(each.export, each.state, each.granted) for each in groups.get("gold").members] == [
        ("db", "sharing", {"iops": 1000}),
        ("old", "apart", {}),
        ("web", "sharing", {"iops": 3000}),
    ]
    groups.place("db", Membership(None, 1, "sharing", db))
    assert (rate(web), rate(db)) == (4000, 0)
    groups.forget("web")
    assert [each.export for each in groups.get("gold").members] == ["old"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "is torn", id="torn"),
        pytest.param(
            b'version = 1\nname = "iron"\n# end\n', "is the record of iron", id="another's"
        ),
        pytest.param(
            b'version = 1\nname = "gold"\n[limits]\nspeed = 3\n# end\n',
            "there is no limit 'speed'",
            id="no-limit",
        ),
    ],
)
async def test_a_record_that_is_none_limits_nobody_and_is_told(content, reason, tmp_path):
    (tmp_path / "gold.toml").write_bytes(content)
    groups = await groups_of(tmp_path)
    (shown,) = groups.list()
    assert re.search(reason, shown.reason)
    page = LimitsPage.empty()
    groups.place("web", Membership("gold", 1, "sharing", page))
    assert rate(page) == 0
    for change in (groups.remove("gold"), groups.change("gold", ChangeGroup(limits={}), ())):
        with pytest.raises(RequestRefused):
            await change
    with pytest.raises(GroupExists):
        await groups.add(GOLD)
    assert (tmp_path / "gold.toml").read_bytes() == content


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
values = st.dictionaries(st.sampled_from(["iops", "bps"]), st.integers(1, 2**40), max_size=2)


@given(st.builds(GroupRecord, names, values))
def test_a_record_survives_the_disk(record):
    assert GroupRecord.read(record.write(), "f", record.name) == record
