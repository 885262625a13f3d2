# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a vring that is served no more, each as a sentence for a person.

The data path notes a flaw as four numbers (`src/virtio/flaw.pxd`); nothing is formatted there.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OF_DEVICE: Final = 64
"""From this number on a flaw is the device's own: see `Device.flaws`."""


class FlawKind(enum.IntEnum):
    """What was found wrong, numbered as in `src/virtio/flaw.pxd`."""

    NONE = 0
    AVAIL_INDEX = 1
    HEAD = 2
    NEXT = 3
    TABLE_NEXT = 4
    LOOP = 5
    TABLE_LOOP = 6
    INDIRECT_NEXT = 7
    TABLE_INDIRECT = 8
    INDIRECT_NOT_ALONE = 9
    INDIRECT_NOT_AGREED = 10
    TABLE_LENGTH = 11
    TABLE_LONG = 12
    TABLE_UNMAPPED = 13
    BUFFER_UNMAPPED = 14
    BUFFER_CUT = 15
    BUFFERS = 16
    INFLIGHT_FULL = 17
    INFLIGHT_POSITION = 18
    INFLIGHT_FREE_LIST = 19
    INFLIGHT_CHAIN = 20
    INFLIGHT_COUNT = 21
    POSITION_UNKNOWN = 22
    LOG = 23
    KICK = 24
    MEMORY = 25
    DENIED = 26


SENTENCES: Final[Mapping[int, str]] = {
    FlawKind.NONE: "it was broken when this process took it over",
    FlawKind.AVAIL_INDEX: (
        "avail index {where} is {value} ahead of what was fetched, in a ring of {limit}"
    ),
    FlawKind.HEAD: "avail entry {where}: descriptor {value} is past the ring's {limit}",
    FlawKind.NEXT: "descriptor {where}: next {value} is past the ring's {limit}",
    FlawKind.TABLE_NEXT: (
        "descriptor {where} of an indirect table: next {value} is past the table's {limit}"
    ),
    FlawKind.LOOP: "the chain at descriptor {where} loops: it has more than the ring's {limit}",
    FlawKind.TABLE_LOOP: "an indirect table of {limit} descriptors loops",
    FlawKind.INDIRECT_NEXT: "descriptor {where} is indirect and has a next",
    FlawKind.TABLE_INDIRECT: "descriptor {where} of an indirect table is indirect itself",
    FlawKind.INDIRECT_NOT_ALONE: (
        "descriptor {where} of a chain, from 0, is indirect and not the chain's only one"
    ),
    FlawKind.INDIRECT_NOT_AGREED: "an indirect descriptor, which features do not allow",
    FlawKind.TABLE_LENGTH: (
        "indirect table at {where:#x} of {value} bytes: not one or more descriptors of {limit}"
    ),
    FlawKind.TABLE_LONG: (
        "indirect table at {where:#x} of {value} descriptors: a chain has {limit} at the most"
    ),
    FlawKind.TABLE_UNMAPPED: (
        "indirect table at {where:#x} of {value} bytes is not in one memory region"
    ),
    FlawKind.BUFFER_UNMAPPED: "buffer at {where:#x} of {value} bytes is in no memory region",
    FlawKind.BUFFER_CUT: (
        "buffer at {where:#x} of {value} bytes: there is no memory region at {limit:#x}"
    ),
    FlawKind.BUFFERS: "a chain has too many buffers, or in too many memory regions",
    FlawKind.INFLIGHT_FULL: "more is in flight than the in-flight region's {limit} descriptors",
    FlawKind.INFLIGHT_POSITION: (
        "in-flight region: used position {value} is past the ring's {limit}"
    ),
    FlawKind.INFLIGHT_FREE_LIST: "in-flight region: the free list comes twice to entry {where}",
    FlawKind.INFLIGHT_CHAIN: (
        "in-flight region: the chain at entry {where} does not end where it is said to"
    ),
    FlawKind.INFLIGHT_COUNT: (
        "in-flight region: {value} descriptors in flight in a ring of {limit}"
    ),
    FlawKind.POSITION_UNKNOWN: "it was served before, and the front end does not know how far",
    FlawKind.LOG: "it writes where the dirty log has no bit",
    FlawKind.KICK: "its kick eventfd cannot be polled: errno {value}",
    FlawKind.MEMORY: "it is in no memory region any more",
    FlawKind.DENIED: (
        "a chain that cannot even be failed: its IOMMU gives no access {value} to {where:#x}"
    ),
}


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a vring, and where; what the numbers mean is said with each kind."""

    kind: int
    where: int
    value: int
    limit: int

    def describe(self, of_device: Mapping[int, str]) -> str:
        """The flaw as a sentence; `of_device` has those of the device's own flaws."""
        sentence = SENTENCES.get(self.kind) or of_device[self.kind]
        return sentence.format(where=self.where, value=self.value, limit=self.limit)
