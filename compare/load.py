# SPDX-License-Identifier: Apache-2.0
"""The two that make load and measure it: `blkd bench` for back ends, and fio alone."""

import json
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from compare.cases import CLIENT_CPUS, TARGET_CPUS, Case, Plan, Subject
from compare.errors import MeasurementFailed
from compare.processor import ended_seconds
from compare.results import Sample
from compare.targets import BLKD, Target, output

LIMIT: Final = 60.0  # seconds beyond the run's own
LEAST_SHARE: Final = 0.9  # of the time that a run should last
WORKERS_FROM: Final = 1.2  # times what fio has seen itself: fio's start is not that exact
MS: Final = 1000
MS_SECONDS: Final = 0.001
US_PER_MS: Final = 1000
PERCENT: Final = 100
FIO_PERCENTILES: Final = ("50", "90", "95", "99", "99.9", "99.99")


@dataclass(frozen=True, slots=True)
class Which:
    """What a measurement is of."""

    case: Case
    subject: Subject
    round: int


async def through_vhost(which: Which, plan: Plan, target: Target) -> Sample:
    """Load a back end for the plan's time.  Raises MeasurementFailed."""
    out = await output(*bench_command(which, plan, target), limit=plan.runtime + plan.ramp + LIMIT)
    return bench_sample(which, json.loads(out), plan.runtime)


def bench_command(which: Which, plan: Plan, target: Target) -> list[str]:
    """`blkd bench`, which polls on the client's processor."""
    case = which.case
    words = [f"{BLKD}", "bench", f"{target.socket}", "--json", "--pid", f"{target.pid}"]
    words += ["--cpu", CLIENT_CPUS, "--rw", case.rw, "--bs", f"{case.block_bytes}"]
    words += ["--iodepth", f"{case.depth}", "--queues", f"{case.queues}"]
    words += ["--runtime", f"{plan.runtime:g}", "--ramp", f"{plan.ramp:g}"]
    return [*words, *which.subject.client]


def bench_sample(which: Which, said: dict[str, Any], runtime: float) -> Sample:
    """What `blkd bench` says of a run that should last `runtime` seconds.

    Raises MeasurementFailed when it was shorter, or a request failed.
    """
    _check(said["errors"], said["ios"], said["seconds"], runtime)
    latency = said["latency_ns"]
    return Sample(
        *(which.case.key, which.subject.key, which.round),
        ios=said["ios"],
        iops=round(said["iops"], 1),
        bytes_per_second=round(said["bytes_per_second"]),
        cpu_us=_rounded(said["target_cpu_us_per_io"]),
        mean_ns=round(latency["mean"]),
        **{f"{p}_ns": latency[p] for p in ("p50", "p90", "p95", "p99", "p99_9", "p99_99")},
        foreign=0.0,
    )


async def fio_alone(which: Which, plan: Plan, image: str) -> Sample:
    """Load the image itself, on the target's processor.  Raises MeasurementFailed."""
    _, start_seconds = await _fio(which, image, MS_SECONDS, 0)
    said, seconds = await _fio(which, image, plan.runtime, plan.ramp)
    counted = (seconds - start_seconds) * plan.runtime / (plan.runtime + plan.ramp)
    return with_kernel_workers(fio_sample(which, said, plan.runtime), counted)


async def _fio(
    which: Which, image: str, runtime: float, ramp: float
) -> tuple[dict[str, Any], float]:
    """What fio says, and its processor time from start to end."""
    words = fio_command(which.case, which.subject.options[0], image, runtime, ramp)
    before = ended_seconds()
    out = await output(*words, f"--cpus_allowed={TARGET_CPUS}", limit=runtime + ramp + LIMIT)
    return json.loads(out[out.index("{") :]), ended_seconds() - before


def with_kernel_workers(sample: Sample, seconds: float) -> Sample:
    """The sample with a true processor time; `seconds` is that of fio's processes, all threads.

    fio asks for its own thread's time, and where a file is not to be read at once, on tmpfs,
    io_uring lets workers in the kernel read it.  fio's own figure is the more exact one where
    there were none.
    """
    cpu_us = seconds * MS * US_PER_MS / sample.ios
    if sample.cpu_us is None or cpu_us <= sample.cpu_us * WORKERS_FROM:
        return sample
    return msgspec.structs.replace(sample, cpu_us=_rounded(cpu_us))


def fio_command(case: Case, engine: str, image: str, runtime: float, ramp: float) -> list[str]:
    """What runs the case's load; latencies are those from before a request is submitted."""
    return [
        *("fio", "--name=job", f"--filename={image}", "--direct=1", f"--ioengine={engine}"),
        *(f"--rw={case.rw}", f"--bs={case.block_bytes}", f"--iodepth={case.depth}"),
        *(f"--runtime={runtime * MS:.0f}ms", f"--ramp_time={ramp * MS:.0f}ms", "--time_based"),
        *("--norandommap", "--invalidate=0", "--lat_percentiles=1", "--clat_percentiles=0"),
        *(f"--percentile_list={':'.join(FIO_PERCENTILES)}", "--output-format=json"),
    ]


def fio_sample(which: Which, said: dict[str, Any], runtime: float) -> Sample:
    """What fio's JSON says of its one job, as `bench_sample`."""
    (job,) = said["jobs"]
    seen = job["write" if "write" in which.case.rw else "read"]
    ios = seen["total_ios"]
    seconds = job["job_runtime"] / MS
    _check(job["error"], ios, seconds, runtime)
    cpu_us = (job["usr_cpu"] + job["sys_cpu"]) / PERCENT * seconds * MS * US_PER_MS / ios
    latency = seen["lat_ns"]
    percentiles = {float(p): value for p, value in latency["percentile"].items()}
    return Sample(
        *(which.case.key, which.subject.key, which.round),
        ios=ios,
        iops=round(seen["iops"], 1),
        bytes_per_second=seen["bw_bytes"],
        cpu_us=_rounded(cpu_us),
        mean_ns=round(latency["mean"]),
        **{f"p{p.replace('.', '_')}_ns": percentiles[float(p)] for p in FIO_PERCENTILES},
        foreign=0.0,
    )


def _check(errors: int, ios: int, seconds: float, runtime: float) -> None:
    if errors:
        raise MeasurementFailed(f"errors: {errors}, in {ios} requests")
    if not ios:
        raise MeasurementFailed("no request was answered")
    if seconds < runtime * LEAST_SHARE:
        raise MeasurementFailed(f"the load lasted {seconds:g} s, not {runtime:g}")


def _rounded(cpu_us: float | None) -> float | None:
    return None if cpu_us is None else round(cpu_us, 4)
