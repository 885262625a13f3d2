# SPDX-License-Identifier: Apache-2.0
"""The dirty log of a live migration: which pages of guest memory were written."""

from collections.abc import Iterable

from blkd import ring
from blkd.dataplane.shared_files import map_log, require_local
from blkd.dataplane.workers import Answer, Workers, WorkerThread
from blkd.host.fds import close_foreign, wait_closed
from blkd.vhost_user.channel import Fds
from blkd.vhost_user.wire import LogBase


class DirtyLog:
    """Owns the log that the front end has given, mapped for the workers to mark in."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._mapping: ring.Mapping | None = None
        self.fd: int | None = None
        """The descriptor behind it, borrowed."""
        self._logs_data = False
        workers.at_start.append(self._post_first)

    async def set(self, log: LogBase | None, fd: int | None) -> None:
        """Mark in another log, or in none; the old one is unused afterwards."""
        mapping: ring.Mapping | None = None
        if log is not None and fd is not None:
            with Fds([fd]) as owned:
                await require_local(owned, "dirty log")
                mapping = map_log(log, fd)
                owned.take()
        await self._use(mapping, fd, of_data=self._logs_data)

    async def log_data(self, *, on: bool) -> None:
        """Mark what requests write into guest memory; vrings' own areas as their setup says."""
        await self._use(self._mapping, self.fd, of_data=on)

    async def clear(self) -> None:
        """Mark nothing more, in no log."""
        await self._use(None, None, of_data=False)

    @property
    def is_marking_data(self) -> bool:
        """Whether data is marked: the guest is being migrated.

        Some front ends accept LOG_ALL and give no log.
        """
        return self._logs_data and self._mapping is not None

    def close(self) -> None:
        """Close the descriptor: the workers have ended."""
        if self.fd is not None:
            close_foreign([self.fd])
            self.fd = None

    async def _use(self, mapping: ring.Mapping | None, fd: int | None, *, of_data: bool) -> None:
        old = [] if mapping is self._mapping else [self._mapping]
        old_fd = [] if self.fd in (None, fd) else [self.fd]
        self._mapping, self.fd, self._logs_data = mapping, fd, of_data
        try:
            await self._workers.post(self._post)
        finally:
            await wait_closed(old_fd, old)

    def _post(self, thread: WorkerThread) -> Answer:
        return thread.answer_to(thread.worker.set_log(self._mapping, self._logs_data))

    def _post_first(self, thread: WorkerThread) -> Iterable[Answer]:
        return [self._post(thread)]
