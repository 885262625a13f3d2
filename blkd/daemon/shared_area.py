# SPDX-License-Identifier: Apache-2.0
"""The statistics area of one export, as the daemon shares it with the process that serves it.

The area outlives the processes, and has an eventfd for each of them: one that was hostile leaves
nothing behind with which the next could be kept from signalling.
"""

import os
from collections.abc import Callable, Sequence

import structlog

from blkd.errors import AreaRefused
from blkd.host.fds import close_foreign
from blkd.statistics.area import Area, make_wake
from blkd.statistics.limits_page import LimitsPage

log = structlog.get_logger()


class SharedArea:
    """An area, from the first process of an export to the end of the export or of the daemon."""

    def __init__(self, export: str, on_change: Callable[[], None]) -> None:
        """`on_change` is called when `page` or `wake` have changed, before the old ones go."""
        self._export = export
        self._on_change = on_change
        self.area: Area | None = None
        """Where processes count; None before the first start."""
        self.page: LimitsPage | None = None
        """That of the area, while a process keeps to what is written there; borrowed."""

    @property
    def wake(self) -> int | None:
        """The eventfd that this process signals; borrowed."""
        return None if self.page is None or self.area is None else self.area.wake

    def prepare(self) -> Sequence[int]:
        """Share it with a process that is started next: the descriptors for that, borrowed.

        Raises DataPlaneError.
        """
        self.area = self.area or Area.make()
        self.area.restore_layout()
        wake = make_wake()
        self.share(wake)
        return self.area.fd, wake

    def share(self, wake: int) -> None:
        """Have it shared with the process that has `wake`, which is taken."""
        self.unshare()
        if self.area is None:
            os.close(wake)
        else:
            self.area.take_wake(wake)
            self._use_page(self.area)

    def adopt(self, fd: int | None, wake: int | None) -> None:
        """Go on with what a process has lent that an earlier daemon has started; takes both.

        They may be anything.  Without an area, nothing is known before the next process.
        """
        self.unshare()
        if self.area is not None or fd is None:  # what is here is for the next process
            close_foreign(each for each in (fd, wake) if each is not None)
            return
        try:
            self.area = Area(fd, wake)
        except AreaRefused as error:
            log.warning("figures not found", export=self._export, reason=str(error))
        else:
            self._use_page(self.area)

    def unshare(self) -> None:
        """Have no process any more that keeps to the page."""
        page, self.page = self.page, None
        self._on_change()
        if page is not None:
            page.release()

    def close(self) -> None:
        """Close it: there is nobody any more who counts, or who asks."""
        self.unshare()
        if self.area is not None:
            self.area.close()
            self.area = None

    def _use_page(self, area: Area) -> None:
        page = LimitsPage(area.limits_page)
        if not page.is_known:
            page.release()
            return
        self.page = page
        self._on_change()
