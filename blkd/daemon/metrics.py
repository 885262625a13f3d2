# SPDX-License-Identifier: Apache-2.0
"""What a daemon knows of its exports, as families of metrics for Prometheus.

Names and suffixes are those of node_exporter's `node_disk_*` where both count the same.  A pure
function of what was observed: nothing is registered, kept or reset, and what is not there any more
has no series.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from types import MappingProxyType
from typing import Final, get_args

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

import blkd
from blkd.control.daemon_models import GroupView, State
from blkd.daemon.observed import Observed, Space
from blkd.export import limits
from blkd.export.limits import Limits
from blkd.statistics.figures import (
    BOUNDS,
    OPERATIONS,
    SIZE_BOUNDS,
    SIZE_CLASSES,
    Errors,
    Figures,
    Histogram,
    Operation,
    Requests,
)

SECOND: Final = 1_000_000_000  # ns
SECTOR_BYTES: Final = 512
FIRST_BOUND: Final = 1024  # ns; all that was faster is one bucket, of which nobody asks more
PHASES: Final = ("ring", "throttle", "disk")
NAME: Final = ("name",)
STATES: Final[tuple[State, ...]] = get_args(State)
TIMED: Final[tuple[Operation, ...]] = tuple(each for each in OPERATIONS if each != "other")
"""Operations whose times stand in histograms."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk whose figures are known."""

    name: str
    figures: Figures
    requests: Mapping[Operation, Requests]
    """Of every operation, whatever their size."""

    @classmethod
    def of(cls, name: str, figures: Figures) -> "Disk":
        """What `figures` come to."""
        return cls(name, figures, {each: figures.of(each) for each in OPERATIONS})


@dataclass(frozen=True, slots=True)
class Number:
    """A metric with one number a disk."""

    name: str
    text: str
    of: Callable[[Disk], float]
    is_counter: bool = True


def _completed(operation: Operation) -> Callable[[Disk], float]:
    return lambda disk: disk.requests[operation].count


def _bytes(operation: Operation, unit: int = 1) -> Callable[[Disk], float]:
    return lambda disk: disk.requests[operation].bytes // unit


def _seconds(operation: Operation) -> Callable[[Disk], float]:
    return lambda disk: disk.requests[operation].total_ns / SECOND


NUMBERS: Final = (
    Number("reads_completed", "Reads that were answered.", _completed("read")),
    Number("read_bytes", "Bytes that were read.", _bytes("read")),
    Number("read_time_seconds", "Time that reads took, each by itself.", _seconds("read")),
    Number("writes_completed", "Writes that were answered.", _completed("write")),
    Number("written_bytes", "Bytes that were written.", _bytes("write")),
    Number("write_time_seconds", "Time that writes took, each by itself.", _seconds("write")),
    Number("discards_completed", "Discards that were answered.", _completed("discard")),
    Number(
        "discarded_sectors",
        "Sectors of 512 bytes that were discarded.",
        _bytes("discard", SECTOR_BYTES),
    ),
    Number("discard_time_seconds", "Time that discards took, each by itself.", _seconds("discard")),
    Number("flush_requests", "Flushes that were answered.", _completed("flush")),
    Number(
        "flush_requests_time_seconds", "Time that flushes took, each by itself.", _seconds("flush")
    ),
    Number(
        "write_zeroes_completed", "Writes of zeroes that were answered.", _completed("write_zeroes")
    ),
    Number(
        "write_zeroes_bytes",
        "Bytes that such requests made read as zeroes.",
        _bytes("write_zeroes"),
    ),
    Number(
        "write_zeroes_time_seconds",
        "Time that writes of zeroes took, each by itself.",
        _seconds("write_zeroes"),
    ),
    Number(
        "other_requests",
        "Requests for the serial, or of a type that the disk does not know.",
        _completed("other"),
    ),
    Number(
        "io_now",
        "Requests in flight, those that are throttled or held included.",
        lambda disk: disk.figures.in_flight,
        is_counter=False,
    ),
    Number(
        "io_time_seconds",
        "Time in which requests were in flight.",
        lambda disk: disk.figures.busy_ns / SECOND,
    ),
    Number(
        "io_time_weighted_seconds",
        "Time of all requests that were answered, each by itself.",
        lambda disk: disk.figures.weighted_ns / SECOND,
    ),
    Number(
        "oldest_request_seconds",
        "Age of the oldest request in flight, 0 without one.",
        lambda disk: disk.figures.oldest_ns / SECOND,
        is_counter=False,
    ),
    Number(
        "requests_throttled",
        "Requests that wait for limits now.",
        lambda disk: disk.figures.throttled,
        is_counter=False,
    ),
    Number(
        "requests_held",
        "Requests that the error policy holds now.",
        lambda disk: disk.figures.held,
        is_counter=False,
    ),
    Number(
        "throttled_seconds",
        "Time that requests have waited for limits, each by itself.",
        lambda disk: disk.figures.throttled_ns / SECOND,
    ),
    Number(
        "front_end_connected",
        "Whether a front end is connected.",
        lambda disk: disk.figures.connected,
        is_counter=False,
    ),
    Number(
        "size_bytes", "What the guest is shown.", lambda disk: disk.figures.size, is_counter=False
    ),
    Number("cpu_seconds", "CPU time of the workers.", lambda disk: disk.figures.cpu_ns / SECOND),
    Number(
        "bounced", "Transfers that went through a buffer.", lambda disk: disk.figures.events.bounced
    ),
    Number(
        "unaligned_requests",
        "Requests whose buffers the image cannot take as they are.",
        lambda disk: disk.figures.events.unaligned,
    ),
    Number(
        "merged_syncs",
        "Requests that a sync begun for another one made durable.",
        lambda disk: disk.figures.events.merged,
    ),
    Number("kicks", "Notifications by the guest.", lambda disk: disk.figures.events.kicks),
    Number("calls", "Notifications to the guest.", lambda disk: disk.figures.events.calls),
    Number("sleeps", "Times that a worker has slept.", lambda disk: disk.figures.events.sleeps),
    Number(
        "sleeps_spared",
        "Times that polling found a request before the worker would have slept.",
        lambda disk: disk.figures.events.sleeps_spared,
    ),
)
"""Without the prefix, and `_total` of counters."""

ERROR_KINDS: Final = tuple(each.name for each in fields_of(Errors))

SPACES: Final[Mapping[str, tuple[str, Callable[[Space], float]]]] = MappingProxyType(
    {
        "allocated_bytes": ("What the image takes of its file system.", lambda x: x.allocated),
        "file_system_free_bytes": ("Free in the file system of the image.", lambda x: x.free),
        "file_system_size_bytes": ("Size of the file system of the image.", lambda x: x.total),
        "nearly_full": (
            "Whether the image may grow, and its file system has less free than `nearly-full`.",
            lambda x: x.nearly_full,
        ),
    }
)
"""Gauges, by name: their texts and values."""


def families(exports: Sequence[Observed], groups: Sequence[GroupView] = ()) -> Iterator[Metric]:
    """All metrics of these exports and their groups, family by family."""
    build = InfoMetricFamily("blkd_build", "The version that answers.")
    build.add_metric([], {"version": blkd.__version__})
    yield build
    yield from _of_processes(exports)
    disks = [each for each in exports if each.device == "blk"]
    yield from _of_disks(disks)
    yield from _of_groups(groups)
    yield from _of_figures([Disk.of(each.name, each.figures) for each in disks if each.figures])


def _of_processes(exports: Iterable[Observed]) -> Iterator[Metric]:
    info = InfoMetricFamily(
        "blkd_export", "What an export is: a disk or another device.", labels=NAME
    )
    up = _gauge("blkd_export_up", "Whether a process serves the export.")
    wanted = _gauge("blkd_export_wanted", "Whether the export is to be served.")
    state = GaugeMetricFamily(
        "blkd_export_state",
        "1 for the state that it is in, 0 for the others.",
        labels=("name", "state"),
    )
    restarts = _counter("blkd_export_restarts", "Times that it died and was started again.")
    since = _gauge("blkd_export_start_time_seconds", "When its process was started, since 1970.")
    for export in exports:
        name = [export.name]
        info.add_metric(name, {"device": export.device})
        up.add_metric(name, export.is_up)
        wanted.add_metric(name, export.wanted == "serving")
        for each in STATES:
            state.add_metric([export.name, each], each == export.state)
        restarts.add_metric(name, export.restarts)
        if export.since is not None:
            since.add_metric(name, export.since)
    yield from (info, up, wanted, state, restarts, since)


def _of_disks(disks: Iterable[Observed]) -> Iterator[Metric]:
    info = InfoMetricFamily("blkd_disk", "What a disk is made of.", labels=NAME)
    limit = GaugeMetricFamily(
        "blkd_disk_limit",
        "A limit that is set, in requests or bytes a second.",
        labels=("name", "limit"),
    )
    spaces = {key: _gauge(f"blkd_disk_{key}", text) for key, (text, _) in SPACES.items()}
    for disk in disks:
        described = disk.described
        info.add_metric(
            [disk.name],
            {
                "image": disk.image,
                "serial": described.serial,
                "engine": described.engine,
                "cache": described.cache,
                "group": disk.group,
            },
        )
        for key, value in _rates(disk.limits).items():
            limit.add_metric([disk.name, key], value)
        if disk.space is not None:
            for key, (_, read) in SPACES.items():
                spaces[key].add_metric([disk.name], read(disk.space))
    yield from (info, limit, *spaces.values())


def _of_groups(groups: Iterable[GroupView]) -> Iterator[Metric]:
    limit = GaugeMetricFamily(
        "blkd_group_limit",
        "A limit of all members of a group together, in requests or bytes a second.",
        labels=("group", "limit"),
    )
    granted = GaugeMetricFamily(
        "blkd_disk_granted",
        "What a disk may use at present of the limits of its group, likewise.",
        labels=("name", "group", "limit"),
    )
    for group in groups:
        for key, value in _rates(limits.changed(Limits(), group.limits)).items():
            limit.add_metric([group.name, key], value)
        for member in group.members:
            for key, value in member.granted.items():
                granted.add_metric([member.export, group.name, key], value)
    yield from (limit, granted)


def _rates(of: Limits) -> dict[str, float]:
    """What is limited, by the names that people write."""
    found: dict[str, float] = {}
    for dimension, limit in limits.by_dimension(of).items():
        name = limits.name_of(dimension)
        found[name] = limit.rate
        if limit.burst:
            found[f"{limits.BURST}{name}"] = limit.burst
    return found


def _of_figures(disks: Sequence[Disk]) -> Iterator[Metric]:
    for number in NUMBERS:
        make = _counter if number.is_counter else _gauge
        family = make(f"blkd_disk_{number.name}", number.text)
        for disk in disks:
            family.add_metric([disk.name], number.of(disk))
        yield family
    errors = CounterMetricFamily(
        "blkd_disk_errors", "Requests that were answered with an error.", labels=("name", "kind")
    )
    for disk in disks:
        for kind in ERROR_KINDS:
            errors.add_metric([disk.name, kind], getattr(disk.figures.errors, kind))
    yield errors
    yield _durations(disks)
    yield _sizes(disks)


def _durations(disks: Iterable[Disk]) -> Metric:
    """How long requests took: of what was asked for, and of limits only where they were felt."""
    family = HistogramMetricFamily(
        "blkd_disk_request_duration_seconds",
        "How long requests waited in the ring, waited for limits, and were at the disk.",
        labels=("name", "operation", "phase"),
    )
    for disk in disks:
        is_throttled = disk.figures.throttled_ns > 0
        for operation in TIMED:
            requests = disk.requests[operation]
            for phase in PHASES if requests.count else ():
                if phase != "throttle" or is_throttled:
                    times: Histogram = getattr(requests, phase)
                    family.add_metric(
                        [disk.name, operation, phase], _buckets(times), times.sum_ns / SECOND
                    )
    return family


def _buckets(times: Histogram) -> list[tuple[str, float]]:
    """Bounds in seconds, and how many do not exceed each."""
    found = zip((*BOUNDS, None), itertools.accumulate(times.buckets), strict=True)
    return [
        ("+Inf" if bound is None else repr(bound / SECOND), count)
        for bound, count in found
        if bound is None or bound >= FIRST_BOUND
    ]


def _sizes(disks: Iterable[Disk]) -> Metric:
    family = HistogramMetricFamily(
        "blkd_disk_request_size_bytes", "How long requests were.", labels=("name", "operation")
    )
    bounds = [*map(str, SIZE_BOUNDS), "+Inf"]
    for disk in disks:
        found = {(cell.operation, cell.size): cell.requests.count for cell in disk.figures.cells}
        for operation in ("read", "write"):
            if disk.requests[operation].count:
                counts = (found.get((operation, size), 0) for size in SIZE_CLASSES)
                buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
                family.add_metric([disk.name, operation], buckets, disk.requests[operation].bytes)
    return family


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=NAME)


def _counter(name: str, text: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=NAME)
