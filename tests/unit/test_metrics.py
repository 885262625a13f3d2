# SPDX-License-Identifier: Apache-2.0
"""The metrics of made exports: what stands in the text, and what promtool says of it."""

import subprocess
from dataclasses import replace

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import blkd
from blkd.control.daemon_models import GroupMember, GroupView
from blkd.daemon.metrics import families
from blkd.daemon.observed import Described, Observed, Space
from blkd.export.limits import Limit, Limits
from blkd.statistics.figures import BUCKETS, Cell, Errors, Events, Figures, Histogram, Requests

GIB = 1 << 30
ODD = 'a "quoted"\\back\nslashed näme\u2028'
BEYOND = 2**64 - 1


class Collected:
    def __init__(self, exports, groups):
        self.exports = exports
        self.groups = groups

    def collect(self):
        return families(self.exports, self.groups)


def text_of(*exports, groups=()):
    return generate_latest(Collected(exports, groups)).decode()


def series(*exports, groups=()):
    """Every sample by its name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text_of(*exports, groups=groups))
        for sample in family.samples
    }


def at(found, metric, **labels):
    return found[(f"blkd_{metric}", *sorted({"name": "web", **labels}.items()))]


def times(**counts):
    """Times counted in buckets: `b6=2` is two in the bucket 6, which ends at 1024 ns."""
    buckets = [0] * BUCKETS
    for bucket, count in counts.items():
        buckets[int(bucket[1:])] = count
    return Histogram(tuple(buckets), sum_ns=1_500_000_000)


FIGURES = Figures(
    time_ns=1,
    cells=(
        Cell("read", "4K", Requests(3, 12288, times(b0=3), times(b0=3), times(b6=1, b7=2))),
        Cell("read", "more", Requests(1, 2 << 20, times(b0=1), times(b0=1), times(b33=1))),
        Cell("write", "64K", Requests(2, 131072, times(b0=2), times(b20=2), times(b9=2))),
        Cell("flush", "4K", Requests(5, 0, times(b0=5), times(), times(b15=5))),
        Cell("discard", "1M", Requests(1, 1 << 20, times(b0=1), times(), times(b15=1))),
        Cell("write_zeroes", "1M", Requests(1, 1 << 20, times(b0=1), times(), times(b15=1))),
        Cell("other", "4K", Requests(1, 20, times(b0=1), times(), times(b0=1))),
    ),
    errors=Errors(no_space=1, io=2, other=3, unsupported=4, refused=5),
    events=Events(bounced=1, unaligned=2, merged=3, kicks=4, calls=5, sleeps=6, sleeps_spared=7),
    busy_ns=2_000_000_000,
    cpu_ns=500_000_000,
    in_flight=7,
    throttled=3,
    held=2,
    oldest_ns=1_250_000_000,
    connected=True,
    size=8 * GIB,
)
WEB = Observed(
    name="web",
    device="blk",
    wanted="serving",
    state="serving",
    restarts=2,
    since=1_700_000_000.5,
    image="/images/web.img",
    described=Described(serial="s1", engine="uring", cache="none"),
    space=Space(free=GIB, total=8 * GIB, allocated=3 * GIB, nearly_full=True),
    figures=FIGURES,
    limits=Limits(iops=Limit(5000, 20000, 10.0), bps_write=Limit(200_000_000)),
    group="gold",
)
NET = Observed(name="lan", device="net", wanted="stopped", state="stopped")
IDLE = replace(WEB, name="idle", figures=Figures(), limits=Limits())


def promtool(text):
    return subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "exports",
    [
        pytest.param((), id="none"),
        pytest.param((WEB, NET, IDLE), id="of-all-kinds"),
        pytest.param((replace(WEB, name=ODD, image=ODD),), id="odd-characters"),
    ],
)
def test_promtool_finds_nothing_wrong(exports):
    checked = promtool(text_of(*exports))
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_promtool_would_find_something():
    assert promtool("# HELP x_total\n# TYPE x_total gauge\nx_total 1\n").returncode != 0


def test_odd_characters_come_back_as_they_were():
    found = series(replace(WEB, name=ODD, image=ODD))
    info = [dict(labels) for name, *labels in found if name == "blkd_disk_info"]
    assert [(each["name"], each["image"]) for each in info] == [(ODD, ODD)]


def test_who_answers_is_said_also_without_exports():
    assert series() == {("blkd_build_info", ("version", blkd.__version__)): 1}


def test_what_node_exporter_counts_has_its_names():
    found = series(WEB)
    assert {
        name: at(found, f"disk_{name}")
        for name in (
            *("reads_completed_total", "read_bytes_total", "read_time_seconds_total"),
            *("writes_completed_total", "written_bytes_total", "write_time_seconds_total"),
            *("discards_completed_total", "discarded_sectors_total", "discard_time_seconds_total"),
            *("flush_requests_total", "flush_requests_time_seconds_total", "io_now"),
            *("io_time_seconds_total", "io_time_weighted_seconds_total"),
        )
    } == {
        "reads_completed_total": 4,
        "read_bytes_total": 12288 + (2 << 20),
        "read_time_seconds_total": 9.0,
        "writes_completed_total": 2,
        "written_bytes_total": 131072,
        "write_time_seconds_total": 4.5,
        "discards_completed_total": 1,
        "discarded_sectors_total": 2048,
        "discard_time_seconds_total": 4.5,
        "flush_requests_total": 5,
        "flush_requests_time_seconds_total": 4.5,
        "io_now": 7,
        "io_time_seconds_total": 2.0,
        "io_time_weighted_seconds_total": 31.5,
    }


def test_what_blkd_counts_besides_is_there():
    found = series(WEB)
    assert {
        name: at(found, f"disk_{name}")
        for name in (
            *("oldest_request_seconds", "requests_throttled", "requests_held"),
            *("throttled_seconds_total", "cpu_seconds_total", "bounced_total"),
            *("unaligned_requests_total", "merged_syncs_total", "kicks_total", "calls_total"),
            *("sleeps_total", "sleeps_spared_total", "other_requests_total"),
            *("write_zeroes_completed_total", "write_zeroes_bytes_total"),
            *("allocated_bytes", "file_system_free_bytes", "file_system_size_bytes"),
            *("nearly_full", "front_end_connected", "size_bytes"),
        )
    } == {
        "oldest_request_seconds": 1.25,
        "requests_throttled": 3,
        "requests_held": 2,
        "throttled_seconds_total": 10.5,
        "cpu_seconds_total": 0.5,
        "bounced_total": 1,
        "unaligned_requests_total": 2,
        "merged_syncs_total": 3,
        "kicks_total": 4,
        "calls_total": 5,
        "sleeps_total": 6,
        "sleeps_spared_total": 7,
        "other_requests_total": 1,
        "write_zeroes_completed_total": 1,
        "write_zeroes_bytes_total": 1 << 20,
        "allocated_bytes": 3 * GIB,
        "file_system_free_bytes": GIB,
        "file_system_size_bytes": 8 * GIB,
        "nearly_full": 1,
        "front_end_connected": 1,
        "size_bytes": 8 * GIB,
    }
    assert at(found, "disk_limit", limit="bps-write") == 2e8
    assert at(found, "disk_limit", limit="iops") == 5000
    assert at(found, "disk_limit", limit="burst-iops") == 20000
    assert at(found, "disk_errors_total", kind="no_space") == 1
    assert at(found, "disk_errors_total", kind="refused") == 5
    info = {"image": "/images/web.img", "serial": "s1", "engine": "uring", "cache": "none"}
    info["group"] = "gold"
    assert at(found, "disk_info", **info) == 1


def test_groups_tell_their_limits_and_what_members_may_use():
    member = GroupMember(export="web", weight=3, state="sharing", granted={"iops": 1500.0})
    gold = GroupView(name="gold", limits={"iops": "2k"}, members=(member,))
    found = series(WEB, groups=(gold,))
    assert found["blkd_group_limit", ("group", "gold"), ("limit", "iops")] == 2000
    assert at(found, "disk_granted", group="gold", limit="iops") == 1500


def test_the_state_of_every_process_is_there():
    found = series(WEB, NET)
    assert (at(found, "export_up"), at(found, "export_wanted")) == (1, 1)
    assert (at(found, "export_up", name="lan"), at(found, "export_wanted", name="lan")) == (0, 0)
    assert at(found, "export_state", state="serving") == 1
    assert at(found, "export_state", state="failed") == 0
    assert at(found, "export_restarts_total") == 2
    assert at(found, "export_start_time_seconds") == 1_700_000_000.5
    assert at(found, "export_info", name="lan", device="net") == 1


@pytest.mark.parametrize(
    ("state", "up"),
    [("serving", 1), ("held", 1), ("paused", 1), ("starting", 0), ("restarting", 0), ("failed", 0)],
)
def test_what_a_process_serves_is_up(state, up):
    assert at(series(replace(WEB, state=state)), "export_up") == up


def test_buckets_hold_what_is_not_above_their_bound():
    found = series(WEB)

    def bucket(le, **labels):
        return at(found, "disk_request_duration_seconds_bucket", le=le, **labels)

    read = {"operation": "read", "phase": "disk"}
    bounds = ("1.024e-06", "2.048e-06", "68.719476736", "+Inf")
    assert [bucket(le, **read) for le in bounds] == [1, 3, 3, 4]
    assert bucket("1.024e-06", operation="read", phase="ring") == 4
    assert at(found, "disk_request_duration_seconds_sum", **read) == 3.0


def test_all_times_are_as_many_as_the_requests():
    found = series(WEB)
    counts = {"read": 4, "write": 2, "flush": 5, "discard": 1, "write_zeroes": 1}
    for operation, count in counts.items():
        for phase in ("ring", "disk"):
            labels = {"operation": operation, "phase": phase}
            assert at(found, "disk_request_duration_seconds_count", **labels) == count


def test_sizes_are_a_histogram_of_bytes():
    found = series(WEB)
    read = [
        at(found, "disk_request_size_bytes_bucket", operation="read", le=le)
        for le in ("4096", "1048576", "+Inf")
    ]
    assert read == [3, 3, 4]
    assert at(found, "disk_request_size_bytes_sum", operation="read") == 12288 + (2 << 20)


def test_an_idle_disk_has_few_series_and_one_in_full_use_not_many():
    alone = len(series())
    full = {name: len(series(export)) - alone for name, export in (("web", WEB), ("idle", IDLE))}
    assert full == {"web": 524, "idle": 55}


def test_what_is_gone_leaves_no_series():
    assert [key for key in series(NET) if ("name", "web") in key] == []
    stopped = series(replace(WEB, state="stopped", figures=None, space=None, since=None))
    left = {name for name, *_ in stopped if name.startswith("blkd_disk_")}
    assert left == {"blkd_disk_info", "blkd_disk_limit"}


def test_numbers_of_a_hostile_process_spoil_nothing_but_themselves():
    evil = Histogram((BEYOND,) * BUCKETS, BEYOND)
    figures = Figures(
        cells=(Cell("read", "4K", Requests(BEYOND, BEYOND, evil, evil, evil)),),
        errors=Errors(io=BEYOND),
        busy_ns=BEYOND,
        in_flight=BEYOND,
        oldest_ns=BEYOND,
    )
    evil_text = text_of(replace(WEB, name="evil", figures=figures), WEB)
    assert promtool(evil_text).returncode == 0
    assert [line for line in evil_text.splitlines() if 'name="web"' in line] == [
        line for line in text_of(WEB).splitlines() if 'name="web"' in line
    ]


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(None, id="none"),
        pytest.param([], id="list"),
        pytest.param({"engine": 1}, id="number"),
        pytest.param({"serial": "x" * 65}, id="long"),
    ],
)
def test_a_state_that_is_none_describes_nothing(state):
    assert Described.read(state) == Described()
