# SPDX-License-Identifier: Apache-2.0
"""What the vhost-user side asks of a virtio device, whatever its kind."""

from collections.abc import Mapping
from typing import Final, Protocol

MAX_QUEUE_SIZE: Final = 1024
"""Descriptors of the largest ring served, whatever its device."""


class Device(Protocol):
    """A virtio device without its transport: features and configuration space.

    Pure state: no sockets, no files, no rings.  `virtio.blk` is one; a network or
    vsock device would be another file beside it.
    """

    queues: int
    """Number of virtqueues offered, from 1."""

    queue_size: int
    """Largest virtqueue size served, in descriptors."""

    features: int
    """Virtio feature bits offered, ring features included, vhost-user's bit 30 not."""

    protocol_features: int
    """Features of vhost-user that only this kind of device has."""

    generation: int
    """Rises whenever the configuration space changes in a way that the driver must learn of."""

    changing: range
    """The bytes of the configuration space that a new generation may have changed."""

    flaws: Mapping[int, str]
    """A sentence for each flaw of a request that breaks its vring, numbers from
    `flaws.OF_DEVICE` on; placeholders as in `flaws.SENTENCES`."""

    def config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the configuration space from `offset`, zero-padded past its end."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a driver's write.  Raises RequestRefused where the space is not writable."""

    def accept(self, features: int) -> None:
        """Take the driver's choice of features.  Raises RequestRefused on a bit never offered."""

    def reset(self) -> None:
        """Forget the driver's choices, as on a virtio device reset (virtio 1.3, 2.4)."""
