# SPDX-License-Identifier: Apache-2.0
"""The settings of an export: one set of models for the command line, the API and files."""

from typing import Annotated, Literal

import msgspec

from blkd.errors import ConfigError
from blkd.image.engine import EngineChoice
from blkd.virtio.device import MAX_QUEUE_SIZE

CacheMode = Literal["none", "writeback", "writethrough"]

MAX_QUEUES = 64
MAX_CPU = 8191  # the kernel's largest NR_CPUS is 8192
MAX_POLL_US = 1000  # a worker that looks on for longer might as well own its CPU
MIN_QUEUE_SIZE = 4  # a request takes three descriptors
SOCKET_MODE = 0o660  # the VMM's group may connect, nobody else
CONTROL_MODE = 0o600  # the API can end a disk: for its owner only
MAX_MODE = 0o777
SERIAL_BYTES = 20  # VIRTIO_BLK_ID_BYTES (virtio 1.3, 5.2.6)


Mode = Annotated[int, msgspec.Meta(ge=0, le=MAX_MODE)]
"""Permissions of a socket's file."""


class ExportConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one image is to be served."""

    image: str
    """Path of a raw image or a block device."""
    image_format: Literal["raw"] | None = None
    """None refuses an image that looks like one of another format."""
    socket: str | None = None
    """Path of the listening UNIX socket; None when a descriptor is handed over instead."""
    name: str
    read_only: bool = False
    queues: Annotated[int, msgspec.Meta(ge=1, le=MAX_QUEUES)] = 4
    queue_size: Annotated[int, msgspec.Meta(ge=MIN_QUEUE_SIZE, le=MAX_QUEUE_SIZE)] = 256
    """Ring size that front ends are expected to choose, in descriptors, a power of two: the
    segment limit follows from it.  Any up to MAX_QUEUE_SIZE is served."""
    serial: Annotated[str, msgspec.Meta(max_length=SERIAL_BYTES)] | None = None
    """What the guest sees as the disk's serial; None derives one from the image."""
    features_as: str | None = None
    """The version of blkd whose set of features is offered; None for the newest."""
    cache: CacheMode = "none"
    """`none`: O_DIRECT, write-back; `writeback`: the host's page cache, write-back;
    `writethrough`: the host's page cache, each write durable."""
    logical_block_size: Literal[512, 4096] | None = None
    """None takes the smallest that the image's file system serves."""
    engine: EngineChoice = "auto"
    """How the data path does I/O; `auto` asks the image."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=MAX_QUEUES)] | None = None
    """Threads that serve the queues; None for one a queue, but for one CPU less than there are."""
    cpus: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()
    """CPUs that the workers are pinned to, one after the other; none leaves that to the kernel."""
    poll_us: Annotated[int, msgspec.Meta(ge=0, le=MAX_POLL_US)] = 32
    """Microseconds that a worker looks on before it sleeps, at the most and as long as it pays."""
    register_memory: bool = False
    """Whether the workers pin all guest memory once, instead of what a request uses each time."""
    incoming: bool = False
    """Whether a guest is to be migrated here: the image is locked when its rings start."""
    discard: bool = True
    max_discard_segments: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    control: str | None = None
    """Path of the control API's UNIX socket."""
    socket_group: str | None = None
    """Name or number of the group that `socket` belongs to; None leaves it to the kernel."""
    socket_mode: Mode = SOCKET_MODE
    control_group: str | None = None
    control_mode: Mode = CONTROL_MODE

    def __post_init__(self) -> None:
        """Raise ConfigError on a text that neither the API nor the log could tell of."""
        for field in self.__struct_fields__:
            _require_text(field, getattr(self, field))


def _require_text(field: str, value: object) -> None:
    """Raise ConfigError if `value` is a text with bytes of the command line that are no UTF-8."""
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the {field} {value!a} is no UTF-8",
            hint="a file with such a name can be served through a symbolic link with another",
        ) from error


def cpu_list(text: str) -> tuple[int, ...]:
    """The CPUs of a list as the kernel writes them, `2-5,8`, in this order; "" has none.

    Raises:
        ValueError: It is no such list.
    """
    cpus: list[int] = []
    for piece in filter(None, text.split(",")):
        first, _, last = piece.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or piece.endswith("-"):
            raise ValueError(f"{piece!r} is no CPU or range of CPUs; write 2-5,8")
        if int(last or first) > MAX_CPU:
            raise ValueError(f"{piece!r} is beyond any CPU: they end at {MAX_CPU}")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise ValueError(f"{piece!r} is an empty range of CPUs")
        cpus += span
    return tuple(cpus)
