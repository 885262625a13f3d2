# SPDX-License-Identifier: Apache-2.0
"""The raw data of a run, as kept in compare/results: a row for every single measurement."""

from pathlib import Path
from typing import Any

import msgspec

VERSION = 1
"""Of the file's form; another one is not read."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One subject under one load for some seconds."""

    case: str
    subject: str
    round: int
    ios: int
    iops: float
    bytes_per_second: float
    cpu_us: float | None
    """Processor time of the subject for each request, in us."""
    mean_ns: float
    p50_ns: float
    p90_ns: float
    p95_ns: float
    p99_ns: float
    p99_9_ns: float
    p99_99_ns: float
    foreign: float
    """Processors that others kept busy meanwhile: 1.0 is a whole one."""


class Footprint(msgspec.Struct, frozen=True, array_like=True):
    """One export with started rings and nothing to do."""

    subject: str
    round: int
    image_bytes: int
    guest_bytes: int
    wakeups: float
    """Context switches a second, of all threads."""
    cpu_us: float
    """Processor time a second, in us."""
    threads: int
    rss_kib: int
    anon_kib: int
    file_kib: int
    shmem_kib: int


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A measurement that is missing, and why."""

    case: str
    subject: str
    round: int
    reason: str


class Function(msgspec.Struct, frozen=True, array_like=True):
    """A function's own share of a request."""

    name: str
    instructions: float


class Profile(msgspec.Struct, frozen=True):
    """Where the instructions of a request go."""

    layout: str
    """"split" or "packed"."""
    tool: str
    requests: int
    instructions: float
    """For each request, all functions together."""
    functions: list[Function]
    cycles: float | None = None
    """Of a request, in user space, where the processor counts them."""


class Carried(msgspec.Struct, frozen=True, array_like=True):
    """What a disk did under a load."""

    iops: float
    p99: float
    """Seconds."""


class Limited(msgspec.Struct, frozen=True):
    """Two disks with the same limit under the same load."""

    case: str
    ideal: Carried
    """What the limit makes of the load."""
    blkd: Carried
    qsd: Carried


class Shared(msgspec.Struct, frozen=True):
    """Requests a second of two disks that share a limit."""

    case: str
    blkd: tuple[float, float]
    qsd: tuple[float, float] | None
    """None where it has no such groups."""


class Run(msgspec.Struct):
    """All that was measured by one command, and on what."""

    plan: str
    began: str
    """Day, in ISO 8601."""
    rounds: int
    runtime: float
    """Seconds that each measurement lasts."""
    minutes: float = 0.0
    version: int = VERSION
    environment: dict[str, str] = {}
    samples: list[Sample] = []
    footprints: list[Footprint] = []
    failures: list[Failure] = []
    profiles: list[Profile] = []
    limited: list[Limited] = []
    shared: list[Shared] = []


def load(path: Path) -> Run:
    """A run that was saved."""
    run = msgspec.json.decode(path.read_bytes(), type=Run)
    if run.version != VERSION:
        raise ValueError(f"{path}: form {run.version} of the data, {VERSION} is known")
    return run


def save(run: Run, path: Path) -> None:
    """Write a run so that one measurement is one line: the file is committed and compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    fields = ",\n".join(
        f"{_json(name)}: {_lines(value)}" for name, value in msgspec.structs.asdict(run).items()
    )
    new.write_text(f"{{\n{fields}\n}}\n")
    new.rename(path)


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(_json, value)) + "\n]"
    return _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
