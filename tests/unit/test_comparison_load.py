# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import pytest

from compare.cases import (
    BLKD,
    FIO_LIBAIO,
    FULL,
    NO_POLL,
    PACKED,
    PLANS,
    QSD_NATIVE,
    QSD_NULL,
    SMOKE,
    Backing,
    Case,
    Family,
)
from compare.errors import MeasurementFailed
from compare.load import (
    Which,
    bench_command,
    bench_sample,
    fio_command,
    fio_sample,
    with_kernel_workers,
)
from compare.targets import Place, Target, blkd_command, qsd_command

READ = Case(Backing.TMPFS, "randread", 4096, 32, (BLKD, FIO_LIBAIO))
WRITE = replace(READ, rw="randwrite")
PLACE = Place(Path("/run/here"))

LATENCY = {"mean": 1500.6, "min": 900, "max": 90000, "p50": 1400, "p90": 1800, "p95": 1900}
LATENCY |= {"p99": 2500, "p99_9": 9000, "p99_99": 80000}
SAID = {"seconds": 2.0, "ios": 400_000, "iops": 200_000.04, "bytes_per_second": 819_200_163.8}
SAID |= {"errors": 0, "target_cpu_us_per_io": 1.23456, "latency_ns": LATENCY}

PERCENTILE = {"50.000000": 1400, "90.000000": 1800, "95.000000": 1900, "99.000000": 2500}
PERCENTILE |= {"99.900000": 9000, "99.990000": 80000}
DONE = {"total_ios": 400_000, "iops": 200_000.04, "bw_bytes": 819_200_163}
DONE |= {"lat_ns": {"mean": 1500.6, "percentile": PERCENTILE}}
NONE = {"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "lat_ns": {"mean": 0.0, "percentile": {}}}
JOB = {"error": 0, "job_runtime": 2000, "usr_cpu": 20.0, "sys_cpu": 60.0, "read": DONE}
JOB |= {"write": NONE}


def fio_said(**changes):
    return {"jobs": [JOB | changes]}


def test_what_blkd_bench_says_becomes_a_sample():
    sample = bench_sample(Which(READ, BLKD, 3), SAID, 2.0)
    assert (sample.case, sample.subject, sample.round) == ("tmpfs-randread-4k-qd32", "blkd", 3)
    assert (sample.ios, sample.iops, sample.cpu_us) == (400_000, 200_000.0, 1.2346)
    assert (sample.mean_ns, sample.p50_ns, sample.p99_9_ns) == (1501, 1400, 9000)


def test_a_run_without_a_process_to_measure_has_no_processor_time():
    said = SAID | {"target_cpu_us_per_io": None}
    assert bench_sample(Which(READ, BLKD, 1), said, 2.0).cpu_us is None


def test_what_fio_says_becomes_a_sample():
    sample = fio_sample(Which(READ, FIO_LIBAIO, 1), fio_said(), 2.0)
    assert (sample.ios, sample.iops, sample.bytes_per_second) == (400_000, 200_000.0, 819_200_163)
    assert (sample.p50_ns, sample.p99_99_ns) == (1400, 80000)


def test_the_processor_time_of_fio_is_its_user_and_system_time():
    sample = fio_sample(Which(READ, FIO_LIBAIO, 1), fio_said(), 2.0)
    assert sample.cpu_us == 4.0  # 80 % of 2 s for 400000 requests


@pytest.mark.parametrize(
    ("seconds", "cpu_us"),
    [
        pytest.param(1.7, 4.0, id="fio-saw-it-all"),
        pytest.param(3.2, 8.0, id="as-much-again-in-the-kernel"),
        pytest.param(-0.1, 4.0, id="a-start-that-took-longer-than-all"),
    ],
)
def test_kernel_workers_count_where_fio_has_not_seen_them(seconds, cpu_us):
    sample = fio_sample(Which(READ, FIO_LIBAIO, 1), fio_said(), 2.0)
    assert with_kernel_workers(sample, seconds).cpu_us == cpu_us


def test_of_writes_fio_is_asked_for_its_writes():
    sample = fio_sample(Which(WRITE, FIO_LIBAIO, 1), fio_said(read=NONE, write=DONE), 2.0)
    assert sample.ios == 400_000


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"errors": 3}, "errors: 3", id="failed-requests"),
        pytest.param({"ios": 0}, "no request", id="nothing-done"),
        pytest.param({"seconds": 0.3}, "lasted 0.3 s", id="ended-too-early"),
    ],
)
def test_a_bad_run_of_blkd_bench_gives_no_figures(changes, reason):
    with pytest.raises(MeasurementFailed, match=reason):
        bench_sample(Which(READ, BLKD, 1), SAID | changes, 2.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"error": 5}, "errors: 5", id="failed-requests"),
        pytest.param({"read": NONE}, "no request", id="nothing-done"),
        pytest.param({"job_runtime": 900}, "lasted 0.9 s", id="ended-too-early"),
    ],
)
def test_a_bad_run_of_fio_gives_no_figures(changes, reason):
    with pytest.raises(MeasurementFailed, match=reason):
        fio_sample(Which(READ, FIO_LIBAIO, 1), fio_said(**changes), 2.0)


def test_the_client_is_pinned_and_measures_the_target():
    words = bench_command(Which(READ, PACKED, 1), FULL, Target(77, PLACE.socket))
    line = " ".join(words)
    assert "--cpu 0" in line
    assert "--pid 77" in line
    assert "--iodepth 32 --queues 1 --runtime 0.8 --ramp 0.1 --packed" in line


def test_fio_takes_the_case_s_load():
    line = " ".join(fio_command(WRITE, "libaio", "/image", 0.5, 0.25))
    assert "--rw=randwrite --bs=4096 --iodepth=32 --runtime=500ms --ramp_time=250ms" in line
    assert "--direct=1" in line


def test_blkd_serves_with_the_subject_s_options():
    words = blkd_command(NO_POLL, "null:1", PLACE, 2)[1:]
    assert words[:4] == ["serve", "null:1", "--socket", "/run/here/disk.sock"]
    assert words[4:] == ["--queues", "2", "--json", "--poll-us", "0"]


def test_qemu_storage_daemon_serves_a_file_writable_and_direct():
    line = " ".join(qsd_command(QSD_NATIVE, "/image", PLACE, 4))
    assert "driver=file,node-name=disk,filename=/image,aio=native,cache.direct=on" in line
    assert "writable=on,num-queues=4,addr.type=unix,addr.path=/run/here/disk.sock" in line
    assert "iothread" not in line


def test_qemu_storage_daemon_serves_nothing_on_an_iothread():
    line = " ".join(qsd_command(QSD_NULL[1], "null:4096", PLACE, 1))
    assert "driver=null-co,node-name=disk,size=4096,read-zeroes=off" in line
    assert "--object iothread,id=t" in line
    assert line.endswith(",iothread=t")


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_each_case_of_a_plan_has_a_key_of_its_own(plan):
    cases = (*plan.cases, *plan.guest_cases)
    assert len({case.key for case in cases}) == len(cases)
    for case in cases:
        assert len(set(case.subjects)) == len(case.subjects)


def test_the_full_plan_alternates_as_often_as_the_goals_ask():
    assert FULL.rounds >= 5
    assert FULL.guest_rounds >= 5


def test_fio_alone_is_never_asked_for_a_null_image():
    for plan in PLANS.values():
        for case in plan.cases:
            if case.backing is Backing.NULL:
                assert all(subject.family is not Family.FIO for subject in case.subjects)


def test_a_plan_is_cut_down_to_what_matches():
    plan = FULL.only("null-*-qd1", "blkd*")
    assert [case.key for case in plan.cases] == ["null-randread-4k-qd1"]
    assert {subject.family for subject in plan.cases[0].subjects} == {Family.BLKD}
    assert plan.guest_cases == ()
    assert SMOKE.only() == SMOKE
