# SPDX-License-Identifier: Apache-2.0
"""The settings of a disk: one model for the command line, a live upgrade and files.

What they come to once the image is open is in `parameters.py`.
"""

from pathlib import PurePath
from typing import Annotated, Final, Literal

from msgspec import Meta

from blkd.errors import ConfigError
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.limits import parse, write
from blkd.export.option import Option
from blkd.image.engine import EngineChoice
from blkd.image.error_policy import require_error_policy
from blkd.virtio.blk import MAX_SEGMENTS, SERIAL_BYTES, FeatureSet
from blkd.virtio.device import MAX_QUEUE_SIZE

CacheMode = Literal["none", "writeback", "writethrough"]

MAX_QUEUES: Final = 64
MAX_CPU: Final = 8191  # the kernel's largest NR_CPUS is 8192
MAX_WEIGHT: Final = 1000
MAX_POLL_US: Final = 1000  # a worker that polls for longer might as well own its CPU
MAX_SLOW_US: Final = 3_600_000_000  # an hour
MIN_QUEUE_SIZE: Final = 4  # a request takes three descriptors


def require_power_of_two(number: int) -> None:
    """Raise ConfigError if `number` is no power of two."""
    if number & (number - 1):
        less = 1 << (number.bit_length() - 1)
        raise ConfigError(f"{number} is no power of two; take {less} or {2 * less}")


def require_serial(serial: str) -> None:
    """Raise ConfigError on a serial that a guest cannot be shown (virtio 1.3, 5.2.6)."""
    if not serial.isascii():
        raise ConfigError(f"{serial!r} has characters that are not ASCII")
    if len(serial) > SERIAL_BYTES:
        raise ConfigError(
            f"{serial!r} has {len(serial)} characters; a serial has at most {SERIAL_BYTES}"
        )


def canonical_limits(text: str) -> str:
    """The one way of writing the limits of a text.  Raises ConfigError."""
    return write(parse(text))


def require_limits(text: str) -> None:
    """Raise ConfigError on a text that says no limits."""
    parse(text)


def cpu_list(text: str) -> tuple[int, ...]:
    """The CPUs of a list as the kernel writes them, `2-5,8`, in this order; "" has none.

    Raises:
        ConfigError: It is no such list.
    """
    cpus: list[int] = []
    for piece in filter(None, text.split(",")):
        first, _, last = piece.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or piece.endswith("-"):
            raise ConfigError(f"{piece!r} is no CPU or range of CPUs; write 2-5,8")
        if int(last or first) > MAX_CPU:
            raise ConfigError(f"{piece!r} is beyond any CPU: they end at {MAX_CPU}")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise ConfigError(f"{piece!r} is an empty range of CPUs")
        cpus += span
    return tuple(cpus)


Workers = Annotated[int, Meta(ge=1, le=MAX_QUEUES)]
Cpu = Annotated[int, Meta(ge=0, le=MAX_CPU)]


class ExportConfig(EndpointConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one image is to be served."""

    image: str
    """Path of a raw image or a block device."""
    socket: Annotated[
        str | None,
        Option("Where the VMM is to connect.", metavar="PATH", required=True),
    ] = None
    """None when a descriptor is given instead."""
    image_format: Annotated[
        Literal["raw"] | None,
        Option(
            "Serve IMAGE as it is, also if it looks like an image of another format.",
            flag="--format",
        ),
    ] = None
    read_only: Annotated[bool, Option("Never write; others may read the image too.")] = False
    queues: Annotated[
        int,
        Meta(ge=1, le=MAX_QUEUES),
        Option("Most queues that a VMM may use; as many as the guest has CPUs is best."),
    ] = 4
    queue_size: Annotated[
        int,
        Meta(ge=MIN_QUEUE_SIZE, le=MAX_QUEUE_SIZE),
        Option(
            "The queue size that the VMM is to use, a power of two; requests are fitted to it.",
            rule=require_power_of_two,
        ),
    ] = 256
    """The segment limit follows from it.  Rings of any size up to MAX_QUEUE_SIZE are served."""
    serial: Annotated[
        str | None,
        Option("The disk's serial in the guest; from the image if not given.", rule=require_serial),
    ] = None
    features_as: Annotated[
        FeatureSet | None,
        Option("Offer no newer features than this version of blkd did; the newest if not given."),
    ] = None
    cache: Annotated[
        CacheMode,
        Option("none: O_DIRECT; writeback: the host's page cache; writethrough: durable writes."),
    ] = "none"
    """The guest starts in write-back mode but with `writethrough`, which uses the page cache."""
    logical_block_size: Annotated[
        Literal[512, 4096] | None,
        Option("The smallest request; what the file system allows if not given."),
    ] = None
    engine: Annotated[
        EngineChoice,
        Option("uring: asynchronous I/O; inline: at once what cannot wait; auto: asks the image."),
    ] = "auto"
    workers: Annotated[
        Workers | None,
        Option("Threads for all queues; if not given, one a queue, but one CPU stays free."),
    ] = None
    cpus: Annotated[
        tuple[Cpu, ...],
        Option(
            "Pin the workers to these CPUs in turn, for example 2-5,8.",
            metavar="LIST",
            read=cpu_list,
        ),
    ] = ()
    poll_us: Annotated[
        int,
        Meta(ge=0, le=MAX_POLL_US),
        Option("Most microseconds that a worker polls before it sleeps, while that pays."),
    ] = 32
    on_enospc: Annotated[
        Literal["report", "hold"],
        Option("Report to the guest that the image has no space, or hold its requests until then."),
    ] = "report"
    on_error: Annotated[
        str,
        Option(
            "Likewise all other errors of the image, perhaps only up to some seconds.",
            metavar="report|hold|hold:SECONDS",
            rule=require_error_policy,
        ),
    ] = "report"
    slow_us: Annotated[
        int,
        Meta(ge=0, le=MAX_SLOW_US),
        Option("Log each request that takes as many microseconds; 0: none."),
    ] = 0
    register_memory: Annotated[
        bool,
        Option(
            "Pin the guest's memory once, not for each request; needs locked memory."
            "  Corrupts the disk of a guest with a balloon or virtio-mem."
        ),
    ] = False
    limit: Annotated[
        str,
        Option(
            "Most that the disk does in a second, for example iops=5000,bps-write=200M,"
            "burst-iops=20000,burst-length=10s.",
            metavar="LIMITS",
            read=canonical_limits,
            rule=require_limits,
        ),
    ] = ""
    """As `limits.parse` reads it."""
    incoming: Annotated[
        bool,
        Option("A guest is to be migrated here: lock the image only when its rings start."),
    ] = False
    discard: Annotated[bool, Option("Keep the guest from giving space back.")] = True
    max_discard_segments: Annotated[
        int,
        Meta(ge=1, le=MAX_SEGMENTS),
        Option("Most ranges in one discard.", flag="--max-discard-seg"),
    ] = 32
    group: Annotated[
        str | None,
        Option(
            "The group whose limits hold for all its exports together: blkd group add makes one.",
            metavar="GROUP",
            of_daemon=True,
        ),
    ] = None
    weight: Annotated[
        int,
        Meta(ge=1, le=MAX_WEIGHT),
        Option("Its share of what the group may use, beside the others'.", of_daemon=True),
    ] = 1


def name_of(image: str) -> str:
    """What the disk of an image is called where no name is given."""
    return PurePath(image).stem
