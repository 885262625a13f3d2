# SPDX-License-Identifier: Apache-2.0
"""Messages of an upgrade as bytes: a header, a document, and descriptors in batches."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self, TypeVar, get_args

import msgspec

from blkd.errors import UpgradeError
from blkd.upgrade import messages

BATCH: Final = 253
"""Most descriptors that the kernel sends at once (SCM_MAX_FD)."""

FILLER: Final = b"\0"
"""What each batch of descriptors comes with: they cannot be sent with nothing."""

MAX_DOCUMENT: Final = 1 << 20  # bytes; 509 regions and 64 rings take less than a fifth

KINDS: Final = {kind.__name__.lower(): kind for kind in get_args(messages.Document)}

Expected = TypeVar("Expected", bound=messages.Document)


@dataclass(frozen=True, slots=True)
class Header:
    """What comes first."""

    LAYOUT: ClassVar = struct.Struct("=II")

    length: int
    """Bytes of the document that follows."""
    descriptors: int

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a header.  Raises UpgradeError on one that announces too much."""
        if len(data) != cls.LAYOUT.size:
            raise UpgradeError(f"a header of {len(data)} bytes, not {cls.LAYOUT.size}")
        header = cls(*cls.LAYOUT.unpack(data))
        if header.length > MAX_DOCUMENT:
            raise UpgradeError(f"a document of {header.length} bytes, not {MAX_DOCUMENT} at most")
        if header.descriptors > messages.MAX_DESCRIPTORS:
            raise UpgradeError(
                f"{header.descriptors} descriptors, not {messages.MAX_DESCRIPTORS} at most"
            )
        return header

    @property
    def batches(self) -> int:
        """How many batches of descriptors follow the document."""
        return -(-self.descriptors // BATCH)


class Envelope(msgspec.Struct, frozen=True):
    """What each document stands in: its kind, and the format of its content."""

    message: str
    format: int
    content: msgspec.Raw


def frame(document: messages.Document, descriptors: int) -> bytes:
    """Header and document of a message that `descriptors` follow."""
    content = msgspec.Raw(msgspec.json.encode(document))
    envelope = Envelope(type(document).__name__.lower(), messages.FORMAT, content)
    data = msgspec.json.encode(envelope)
    return Header.LAYOUT.pack(len(data), descriptors) + data


def batched(descriptors: Sequence[int]) -> Iterator[Sequence[int]]:
    """The descriptors as they are sent, each batch with one FILLER."""
    for at in range(0, len(descriptors), BATCH):
        yield descriptors[at : at + BATCH]


def read(data: bytes, expected: type[Expected]) -> Expected:
    """The document `data`, of the kind that is due.

    Raises UpgradeError if it is another, of another format or malformed, and with the peer's
    own words if it is a refusal.
    """
    due = expected.__name__.lower()
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
        kind = KINDS.get(envelope.message)
        if kind is None or kind not in (expected, messages.Refusal):
            raise UpgradeError(f"{envelope.message!r} where {due!r} was due")
        if envelope.format != messages.FORMAT and kind not in messages.OF_ANY_FORMAT:
            raise UpgradeError(f"format {envelope.format}, not {messages.FORMAT}")
        document = msgspec.json.decode(envelope.content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UpgradeError(f"no {due!r} of an upgrade: {error}") from error
    if not isinstance(document, expected):
        assert isinstance(document, messages.Refusal)
        raise UpgradeError(document.reason)
    return document
