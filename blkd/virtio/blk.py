# SPDX-License-Identifier: Apache-2.0
"""The virtio block device as its driver sees it: features and configuration space.

Section numbers are those of virtio 1.3.  Requests are the data plane's affair; what it has
to check them against (capacity, limits, the cache mode in force) stands here.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Final, Literal, NamedTuple, Self

from blkd.errors import ConfigError, RequestRefused
from blkd.virtio.device import MAX_QUEUE_SIZE
from blkd.virtio.flaws import OF_DEVICE

SECTOR_BYTES: Final = 512
SERIAL_BYTES: Final = 20  # VIRTIO_BLK_ID_BYTES

SIZE_MAX_BYTES: Final = 1 << 20
"""Longest data segment: one is enough for a 1 MiB request, and 0 would be read as a limit."""

MAX_ZEROING_SECTORS: Final = (1 << 30) // SECTOR_BYTES
"""Longest range of one DISCARD or WRITE_ZEROES segment: 1 GiB, a multiple of any granularity."""

POWERS_OF_16_BITS: Final = frozenset(1 << n for n in range(16))
"""What min_io_size, in blocks, and the exponent beside it can say."""

MAX_SEGMENTS: Final = 256
"""Most segments of one DISCARD or WRITE_ZEROES that the data path takes."""

FRAMING_DESCRIPTORS: Final = 2
"""What a request's header and status take from a chain that may be as long as the ring."""


FLAWS: Final[Mapping[int, str]] = {
    OF_DEVICE: "request: buffer {where} is to be read, behind one to be written",
    OF_DEVICE + 1: "request: no status byte, for none of its {value} buffers is to be written",
    OF_DEVICE + 2: "request: fewer than {limit} bytes to be read are no header",
}
"""What breaks a vring since it cannot even be answered, numbered as in `src/blk/operation.pxd`."""


class Feature(IntFlag):
    """Feature bits that blkd knows for a block device (5.2.3, 6)."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34


FeatureSet = Literal["0.1", "0.2"]

OF_0_1: Final = (
    Feature.SIZE_MAX
    | Feature.SEG_MAX
    | Feature.RO
    | Feature.BLK_SIZE
    | Feature.FLUSH
    | Feature.TOPOLOGY
    | Feature.CONFIG_WCE
    | Feature.MQ
    | Feature.DISCARD
    | Feature.WRITE_ZEROES
    | Feature.RING_INDIRECT_DESC
    | Feature.RING_EVENT_IDX
    | Feature.VERSION_1
    | Feature.RING_PACKED
)

FEATURE_SETS: Final[dict[FeatureSet, int]] = {
    "0.1": OF_0_1,
    "0.2": OF_0_1 | Feature.ACCESS_PLATFORM,
}
"""What a device offers where it can, by the version that began to; the newest is the last.

A set never changes.  A bit that is new makes another set: a guest that knows one is migrated
only to where it is offered too, and may have to go back to an older version.
"""

OLDEST_SET: Final[FeatureSet] = next(iter(FEATURE_SETS))
NEWEST_SET: Final[FeatureSet] = next(reversed(FEATURE_SETS))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkParameters:
    """What makes one block device differ from another; bytes unless said."""

    capacity: int
    """Sectors."""
    logical_block_size: int
    physical_block_size: int
    optimal_io_size: int = 0
    """0 where unknown."""
    discard_granularity: int = 0
    """0 where the image cannot give space back: DISCARD is not offered then."""
    zeroes_unmap: bool = True
    """Whether what is zeroed may be given back, and reads as zeroes all the same."""
    read_only: bool
    write_back: bool
    """The cache mode that the device starts with and that a driver without CONFIG_WCE gets."""
    discard: bool
    """False keeps DISCARD and WRITE_ZEROES from the guest."""
    max_discard_segments: int
    queues: int
    queue_size: int
    """Descriptors of the rings that seg_max is made for, a power of two."""
    serial: str
    """At most SERIAL_BYTES of ASCII."""
    feature_set: FeatureSet


class BlkConfig(NamedTuple):
    """struct virtio_blk_config up to write_zeroes_may_unmap (5.2.4), names and order its own.

    The geometry, the secure-erase and the zoned fields belong to features never offered: zeros.
    """

    capacity: int
    size_max: int
    seg_max: int
    blk_size: int
    physical_block_exp: int
    min_io_size: int
    opt_io_size: int
    writeback: bool
    num_queues: int
    max_discard_sectors: int
    max_discard_seg: int
    discard_sector_alignment: int
    max_write_zeroes_sectors: int
    max_write_zeroes_seg: int
    write_zeroes_may_unmap: bool


# Little-endian for drivers of both kinds: a legacy one uses the guest's own order (5.2.4.1),
# and blkd's hosts, whose guests these are, are little-endian.
LAYOUT: Final = struct.Struct(
    "<QII"  # capacity, size_max, seg_max
    "4xI"  # geometry, blk_size
    "BxHI"  # topology: its alignment_offset is 0
    "?xH"  # writeback, unused0, num_queues
    "III"  # discard
    "II?3x"  # write zeroes, unused1
)
WRITEBACK_OFFSET: Final = 32
CAPACITY: Final = range(8)
"""Where the capacity stands: what a resize changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a driver was shown and counts on until the device is started anew; bytes unless said.

    It follows from the host, the image and the version of blkd that started the device, so a
    process that takes the device over needs it from the one that served it.
    """

    features: int
    size_max: int
    seg_max: int
    physical_block_size: int
    optimal_io_size: int
    discard_granularity: int
    max_discard_sectors: int
    max_discard_segments: int
    max_write_zeroes_sectors: int
    max_write_zeroes_segments: int
    write_zeroes_may_unmap: bool

    @classmethod
    def first(cls, p: BlkParameters) -> Self:
        """What a device that is started with these parameters shows."""
        write_zeroes = p.discard and not p.read_only
        discard = write_zeroes and p.discard_granularity > 0
        given = {
            Feature.RO: p.read_only,
            Feature.MQ: p.queues > 1,
            Feature.DISCARD: discard,
            Feature.WRITE_ZEROES: write_zeroes,
        }
        absent = sum(feature for feature, is_given in given.items() if not is_given)
        return cls(
            features=int(FEATURE_SETS[p.feature_set]) & ~absent,
            size_max=SIZE_MAX_BYTES,
            seg_max=p.queue_size - FRAMING_DESCRIPTORS,
            physical_block_size=p.physical_block_size,
            optimal_io_size=p.optimal_io_size,
            discard_granularity=p.discard_granularity if discard else 0,
            max_discard_sectors=MAX_ZEROING_SECTORS if discard else 0,
            max_discard_segments=p.max_discard_segments if discard else 0,
            max_write_zeroes_sectors=MAX_ZEROING_SECTORS if write_zeroes else 0,
            max_write_zeroes_segments=p.max_discard_segments if write_zeroes else 0,
            write_zeroes_may_unmap=discard and p.zeroes_unmap,
        )

    def refuse_unfit(self, p: BlkParameters) -> None:
        """Raise ConfigError unless a device of these parameters can go on showing this."""
        if unknown := self.features & ~int(FEATURE_SETS[NEWEST_SET]):
            raise ConfigError(f"features {unknown:#x} are offered, which this version has not")
        if bool(self.features & Feature.RO) != p.read_only:
            raise ConfigError(f"features {self.features:#x} of a disk with read_only={p.read_only}")
        offered = Feature(self.features)
        blocks = self.physical_block_size // p.logical_block_size
        fit = (
            blocks in POWERS_OF_16_BITS
            and self.physical_block_size % p.logical_block_size == 0
            and self.optimal_io_size % p.logical_block_size == 0
            and self.discard_granularity % p.logical_block_size == 0
            and bool(self.discard_granularity) == (Feature.DISCARD in offered)
            and bool(self.max_discard_sectors) == (Feature.DISCARD in offered)
            and bool(self.max_write_zeroes_sectors) == (Feature.WRITE_ZEROES in offered)
            and max(self.max_discard_segments, self.max_write_zeroes_segments) <= MAX_SEGMENTS
        )
        if not fit:
            raise ConfigError(f"a disk cannot be like this: {self}")


class BlkDevice:
    """A virtio block device without its transport; plays `virtio.device.Device`.

    `shown` is what it goes on showing, of one that another process has started; ConfigError
    where it cannot.
    """

    def __init__(self, parameters: BlkParameters, shown: Shown | None = None) -> None:
        if shown is not None:
            shown.refuse_unfit(parameters)
        self.parameters = parameters
        self.shown = shown or Shown.first(parameters)
        self.queues = parameters.queues
        self.queue_size = MAX_QUEUE_SIZE
        self.capacity = parameters.capacity
        self.generation = 0
        self.changing = CAPACITY
        self.flaws = FLAWS
        self.read_only = parameters.read_only
        self.serial = parameters.serial.encode("ascii").ljust(SERIAL_BYTES, b"\0")
        """The answer to GET_ID, NUL-padded and unterminated when full (5.2.6)."""

        self.features = self.shown.features
        self.protocol_features = 0
        self.discard = Feature.DISCARD in Feature(self.features)
        self.max_discard_sectors = self.shown.max_discard_sectors
        self.max_write_zeroes_sectors = self.shown.max_write_zeroes_sectors
        self.max_write_zeroes_segments = self.shown.max_write_zeroes_segments
        self._accepted = Feature(0)
        self._writeback = parameters.write_back
        self.chosen_write_back: bool | None = None
        """What a driver chose; None where none has, as far as this process knows."""

    @property
    def write_back(self) -> bool:
        """Whether completed writes may wait for a FLUSH; False: each is durable (5.2.6.2).

        A driver that cannot flush never gets a volatile cache; one that cannot see the
        `writeback` field gets the mode the device was made with.
        """
        if Feature.FLUSH not in self._accepted:
            return False
        if Feature.CONFIG_WCE not in self._accepted:
            return self.parameters.write_back
        return self._writeback

    def config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the configuration space from `offset`, zero-padded past its end."""
        return LAYOUT.pack(*self._config())[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a driver's write of `writeback`, the one writable field; not 0 is write-back."""
        if offset != WRITEBACK_OFFSET or len(data) != 1:
            raise RequestRefused(
                f"config bytes {offset} to {offset + len(data)} written,"
                f" only the writeback byte at {WRITEBACK_OFFSET} can be"
            )
        self.choose(write_back=data != b"\0")

    def accept(self, features: int) -> None:
        """Take the driver's choice of features.  Raises RequestRefused on a bit never offered."""
        if unknown := features & ~self.features:
            raise RequestRefused(f"features {unknown:#x} were accepted but never offered")
        self._accepted = Feature(features)

    def reset(self) -> None:
        """Forget the driver's features; the `writeback` field stays as it was last written.

        The mode after a reset is the device's choice (5.2.5).  QEMU fetches the configuration
        space once and answers its guest from that copy: a field that sprang back to write-back
        here would leave the next driver believing in durable writes that are none.
        """
        self._accepted = Feature(0)

    def restore(self, *, capacity: int, generation: int, write_back: bool) -> None:
        """Be as another process has left the device; the driver's features come afterwards."""
        self.capacity, self.generation, self._writeback = capacity, generation, write_back

    @property
    def writeback_field(self) -> bool:
        """The `writeback` field as it was last written, whether it is in force or not."""
        return self._writeback

    def choose(self, *, write_back: bool) -> None:
        """Be in the cache mode that a driver has chosen."""
        self._writeback = self.chosen_write_back = write_back

    def resize(self, capacity: int) -> None:
        """Show a disk of `capacity` sectors from now on."""
        if capacity != self.capacity:
            self.capacity = capacity
            self.generation += 1

    def _config(self) -> BlkConfig:
        block, shown = self.parameters.logical_block_size, self.shown
        in_force = Feature.CONFIG_WCE in self._accepted
        return BlkConfig(
            capacity=self.capacity,
            size_max=shown.size_max,
            seg_max=shown.seg_max,
            blk_size=block,
            physical_block_exp=(shown.physical_block_size // block).bit_length() - 1,
            min_io_size=shown.physical_block_size // block,
            opt_io_size=shown.optimal_io_size // block,
            writeback=self.write_back if in_force else self._writeback,
            num_queues=self.queues,
            max_discard_sectors=shown.max_discard_sectors,
            max_discard_seg=shown.max_discard_segments,
            discard_sector_alignment=shown.discard_granularity // SECTOR_BYTES,
            max_write_zeroes_sectors=shown.max_write_zeroes_sectors,
            max_write_zeroes_seg=shown.max_write_zeroes_segments,
            write_zeroes_may_unmap=shown.write_zeroes_may_unmap,
        )
