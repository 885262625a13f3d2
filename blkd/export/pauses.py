# SPDX-License-Identifier: Apache-2.0
"""Why a device fetches nothing: reasons that are given and taken back one by one."""

import enum

from blkd.dataplane import DataPlane


class Pause(enum.Enum):
    """Why no request is fetched; each reason is given and taken back by itself."""

    ORDERED = enum.auto()
    """Somebody called for it."""
    SHRINKING = enum.auto()
    """The image gets smaller, with nothing in flight."""
    FROZEN = enum.auto()
    """Another process takes the export over, or this one has not begun to serve what it took."""
    ENDING = enum.auto()
    """The export ends."""


class Pauses:
    """The reasons for which a data path is paused; it fetches while there is none."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._reasons: set[Pause] = set()

    async def begin(self, why: Pause, limit: float) -> None:
        """Fetch nothing more, and wait up to `limit` seconds for what is in flight.

        Raises DrainTimeout where that is still not done; nothing is fetched all the same.
        """
        self._reasons.add(why)
        await self._plane.pause(limit)

    def keep(self, why: Pause) -> None:
        """Give a data path that does not fetch yet one more reason for that."""
        self._reasons.add(why)

    async def end(self, why: Pause) -> None:
        """Take one reason back: requests are fetched again once there is none left."""
        self._reasons.discard(why)
        if not self._reasons:
            await self._plane.resume()

    def __contains__(self, why: Pause) -> bool:
        """Whether this is one of the reasons."""
        return why in self._reasons
