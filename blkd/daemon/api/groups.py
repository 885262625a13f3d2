# SPDX-License-Identifier: Apache-2.0
"""What the API asks of the groups of exports that a daemon has."""

from collections.abc import Sequence
from typing import Protocol

from blkd.control.daemon_models import AddGroup, ChangeGroup, GroupView, RemovedGroup


class Groups(Protocol):
    """The groups of a daemon, whose members name them in their settings.

    Every call is carried out to its end, also if its caller goes away, and calls on one group one
    after the other.
    """

    def list(self) -> Sequence[GroupView]:
        """All groups, by name."""

    def get(self, name: str) -> GroupView:
        """One of them.  Raises NoSuchGroup."""

    async def add(self, wanted: AddGroup) -> tuple[GroupView, bool]:
        """Keep a group: what it is now, and whether it is new.

        One of that name with those limits is left as it is.

        Raises:
            GroupExists: One of that name has other limits.
            ConfigError: They are no limits.
        """

    async def change(self, name: str, wanted: ChangeGroup, if_match: Sequence[str]) -> GroupView:
        """Change limits; `if_match` has tags of `group_tag`, or is empty for no condition.

        Raises:
            NoSuchGroup: There is none of that name.
            GroupChanged: None of the tags is that of the limits until now.
            ConfigError: They would be no limits.
        """

    async def remove(self, name: str) -> RemovedGroup:
        """Forget a group; does not raise NoSuchGroup.

        Raises RequestRefused while an export is in it.
        """
