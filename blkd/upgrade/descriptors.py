# SPDX-License-Identifier: Apache-2.0
"""The descriptors of one message: documents call them by their place in it."""

from collections.abc import Sequence

from blkd.errors import UpgradeError


class OutgoingFds:
    """Descriptors to be sent; they stay with their owners."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def add(self, fd: int) -> int:
        """Send `fd`: what the document calls it."""
        self.fds.append(fd)
        return len(self.fds) - 1

    def add_any(self, fd: int | None) -> int | None:
        """The same for a descriptor that there may not be."""
        return None if fd is None else self.add(fd)


class IncomingFds:
    """Descriptors that came: each is taken once, by who owns it from then on."""

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds: dict[int, int] = dict(enumerate(fds))

    def take(self, index: int) -> int:
        """The descriptor that a document calls `index`.  Raises UpgradeError."""
        try:
            return self._fds.pop(index)
        except KeyError:
            raise UpgradeError(f"descriptor {index} did not come, or is named twice") from None

    def take_any(self, index: int | None) -> int | None:
        """The same for a descriptor that there may not be."""
        return None if index is None else self.take(index)

    def take_rest(self) -> list[int]:
        """All that nobody has taken."""
        rest, self._fds = list(self._fds.values()), {}
        return rest

    def __len__(self) -> int:
        """How many nobody has taken yet."""
        return len(self._fds)
