# SPDX-License-Identifier: Apache-2.0
"""The pure parts of `blkd bench`: what may be asked, what is shown, where things lie."""

import itertools
import os
import subprocess
import time

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from blkd.cli.group import blkd
from blkd.errors import BenchError
from blkd.loadgen.cpu_time import Processor
from blkd.loadgen.guest_memory import FRAME_STRIDE, PAGE, QueueLayout
from blkd.loadgen.latency import PERCENTILES, WHOLE, Counted, Latency
from blkd.loadgen.loader import Passing
from blkd.loadgen.phases import Progress
from blkd.loadgen.progress import describe
from blkd.loadgen.result import Result, judge_passings
from blkd.loadgen.workload import DEFAULT_RUNTIME, Rw, Workload

NOTHING = Latency.of(Counted())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param({"bs": 1000}, "block size", id="no-sectors"),
        pytest.param({"bs": 0}, "block size", id="nothing"),
        pytest.param({"bs": 128 << 20}, "block size", id="too-much"),
        pytest.param({"size": 2048}, "holds no block", id="size"),
        pytest.param({"queues": 0}, "0 queues", id="no-queue"),
        pytest.param({"iodepth": 0}, "iodepth of 0", id="no-depth"),
        pytest.param({"rwmix": 101}, "percent", id="mix"),
        pytest.param({"queue_size": 100}, "power of two", id="ring"),
        pytest.param({"verify": True, "verify_only": True}, "exclude", id="both"),
        pytest.param({"verify": True, "rw": Rw.READ}, "nothing to check", id="verify-read"),
        pytest.param({"verify": True, "rw": Rw.TRIM}, "nothing to check", id="verify-trim"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(options, reason):
    with pytest.raises(BenchError, match=reason) as refused:
        Workload(**options)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        pytest.param({}, DEFAULT_RUNTIME, id="default"),
        pytest.param({"runtime": 3.0}, 3.0, id="given"),
        pytest.param({"verify": True, "rw": Rw.WRITE}, 0.0, id="verify-has-no-end-but-its-own"),
        pytest.param({"verify": True, "rw": Rw.WRITE, "runtime": 3.0}, 3.0, id="verify-given"),
    ],
)
def test_how_long_a_run_lasts(options, seconds):
    assert Workload(**options).run_seconds == seconds


@pytest.mark.parametrize(
    ("options", "descriptors", "size"),
    [
        pytest.param({}, 1, 128, id="default"),
        pytest.param({"iodepth": 100}, 3, 512, id="as-many-as-needed"),
        pytest.param({"iodepth": 100, "queue_size": 1024}, 3, 1024, id="given"),
    ],
)
def test_a_ring_is_as_long_as_its_requests_need(options, descriptors, size):
    assert Workload(**options).ring_size(descriptors) == size


@pytest.mark.parametrize(
    ("options", "descriptors"),
    [
        pytest.param({"iodepth": 100, "queue_size": 128}, 3, id="given"),
        pytest.param({"iodepth": 1000}, 3, id="longest"),
    ],
)
def test_a_ring_that_is_too_short_is_refused(options, descriptors):
    with pytest.raises(BenchError, match=f"need {options['iodepth'] * descriptors}"):
        Workload(**options).ring_size(descriptors)


@given(st.integers(1, 1024), st.integers(1, 64), st.integers(2, 130), st.integers(1, 256))
def test_the_parts_of_a_queue_lie_apart(size, depth, parts, sectors):
    at = QueueLayout.at(8192, size=size, depth=depth, parts=parts, block_bytes=sectors * 512)
    wanted = [
        (at.desc, 16 * size),
        (at.avail, 6 + 2 * size),
        (at.used, 6 + 8 * size),
        (at.frames, FRAME_STRIDE * depth),
        (at.tables, at.table_stride * depth),
        (at.data, at.data_stride * depth),
        (at.end, 0),
    ]
    assert at.desc == 8192
    assert all(start % PAGE == 0 for start, _ in wanted)
    assert all(a + length <= b for (a, length), (b, _) in itertools.pairwise(wanted))
    assert at.table_stride >= 16 * parts
    assert at.data_stride >= sectors * 512


def test_latencies_of_several_kinds_count_as_one():
    one = Counted(2, 30, 10, 20, {10: 1, 20: 1})
    other = Counted(1, 20, 20, 20, {20: 1})
    assert Counted.merged([one, Counted(), other]) == Counted(3, 50, 10, 20, {10: 1, 20: 2})
    assert Counted.merged([Counted()]) == Counted()


def test_percentiles_rise_to_the_largest():
    latency = Latency.of(Counted(1000, 499_500, 0, 999, dict.fromkeys(range(128), 1) | {128: 872}))
    values = [latency.min, *(getattr(latency, name) for name in PERCENTILES), latency.max]
    assert values == sorted(values)
    assert latency.mean == 499.5
    assert all(0 < share < WHOLE for share in PERCENTILES.values())


def result(**fields):
    plain = {
        "rw": "read", "bs": 4096, "iodepth": 1, "queues": 1, "queue_size": 128, "size": 40960,
        "packed": False, "event_idx": True, "indirect": True, "seconds": 1.0, "ios": 10,
        "iops": 10.0, "bytes_per_second": 40960.0, "errors": 0, "latency_ns": NOTHING,
        "latency_ns_by_op": None, "client_cpu_seconds": 1.0, "target_cpu_seconds": None,
        "target_cpu_us_per_io": None, "kicks": 1, "verified_blocks": 10, "wrong_blocks": 0,
        "interrupted": False, "wrong": (),
    }  # fmt: skip
    return Result(**plain | fields)


@pytest.mark.parametrize(
    ("passings", "stale"),
    [
        pytest.param([], None, id="none"),
        pytest.param([Passing(1, 0, 9, 0)], None, id="one-pass"),
        pytest.param([Passing(2, 0, 5, 0), Passing(1, 6, 9, 24576)], None, id="in-mid-pass"),
        pytest.param([Passing(2, 0, 9, 0), Passing(1, 6, 6, 24576)], 24576, id="one-was-lost"),
        pytest.param([Passing(4, 0, 5, 0), Passing(1, 6, 9, 24576)], 24576, id="passes-between"),
    ],
)
def test_what_a_pass_left_out_is_stale(passings, stale):
    for order in itertools.permutations(passings):
        judged = judge_passings(result(), tuple(order))
        assert judged.wrong_blocks == (stale is not None)
        assert [w.offset for w in judged.wrong] == ([] if stale is None else [stale])


def test_the_processor_time_of_another_process_is_counted_with_its_dead_threads():
    burn = "import threading, time\n"
    burn += "def f():\n while time.thread_time() < 0.2: pass\n"
    burn += "t = threading.Thread(target=f); t.start(); t.join(); print(flush=True); input()"
    with subprocess.Popen(
        ["python3", "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as busy:
        busy.stdout.readline()
        assert 0.2 <= Processor(busy.pid).seconds() < 5
        busy.communicate(b"\n")
    with pytest.raises(BenchError, match=f"no process {busy.pid}"):
        Processor(busy.pid)


def test_our_own_processor_time_agrees_with_the_clock_of_python():
    measured = Processor(os.getpid())
    before = time.process_time()
    assert before <= measured.seconds() <= time.process_time()
    assert Processor(None).seconds() == 0


@pytest.mark.parametrize(
    ("now", "text"),
    [
        pytest.param(
            Progress("ramp", 500, 0, 0.5, 2.0), "0 of 2 s, 500 requests, 1000/s", id="new"
        ),
        pytest.param(
            Progress("read", 900, 0, 2.0, 9.0), "2 of 9 s, 900 requests, 400/s", id="next"
        ),
        pytest.param(Progress("check", 30, 40, 1.0, 0.0), "75 %, 30 requests, 30/s", id="share"),
    ],
)
def test_progress_is_one_line_with_the_rate_since_the_last(now, text):
    before = Progress("read", 500, 0, 1.0, 9.0)
    assert describe(now, before) == f"{now.phase}: {text}"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no-socket"),
        pytest.param(["s", "--rw", "sometimes"], id="rw"),
        pytest.param(["s", "--bs", "1000"], id="bs"),
        pytest.param(["s", "--bs", "many"], id="no-size"),
        pytest.param(["s", "--iodepth", "0"], id="iodepth"),
        pytest.param(["s", "--runtime", "0"], id="runtime"),
        pytest.param(["s", "--rate", "-1"], id="rate"),
        pytest.param(["s", "--pid", "0"], id="pid"),
        pytest.param(["s", "--verify"], id="verify-of-reads"),
        pytest.param(["s", "--rw", "write", "--verify", "--verify-only"], id="verify-twice"),
    ],
)
def test_wrong_usage_ends_with_2(arguments):
    assert CliRunner().invoke(blkd, ["bench", *arguments]).exit_code == 2


def test_a_cpu_that_is_not_there_is_an_error():
    done = CliRunner().invoke(blkd, ["bench", "/nowhere", "--cpu", "4095"])
    assert done.exit_code == 1
    assert "CPU 4095" in done.stderr
    assert "hint: " in done.stderr
