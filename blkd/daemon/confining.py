# SPDX-License-Identifier: Apache-2.0
"""What the process of an export gives up, and what it keeps, by what it serves."""

import time
from pathlib import Path
from typing import Final

from blkd.daemon import orders
from blkd.export.config import MAX_QUEUES, ExportConfig
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.net_config import NetConfig
from blkd.export.vsock_config import VsockConfig
from blkd.export.vsock_export import most_descriptors
from blkd.host import confinement
from blkd.host.sandbox_policy import OPEN_FILES, PRIVATE_MEMORY, Confinement, Policy

THREADS_LIMIT: Final = 1.0  # seconds for threads to go that have nothing to do any more
THREADS_PERIOD: Final = 0.001  # seconds between two looks
GUEST_RESERVE: Final = 5 << 28
"""Bytes of addresses that a guest's connections are given, whether there are any: 1.13 GiB."""

WORKER_RESERVE: Final = 1 << 26
"""Bytes of addresses for a worker: its stack, its tables, malloc's; 32 MiB have been seen."""


class Confined:
    """This process, which has given up what it needs no more; made while it has one thread."""

    def __init__(self, sandbox: orders.Sandbox, config: EndpointConfig | None = None) -> None:
        """Keeps all descriptors that are open by now.

        Without `config` it is to serve a disk.  Raises SandboxError.
        """
        self._confinement: Confinement | None = None
        if not sandbox.on:
            return
        _wait_for_threads()
        self._policy = _policy(sandbox, config)
        self._confinement = confinement.confine(self._policy)

    def seal(self, *, io_uring_restricted: bool) -> Confinement | None:
        """Give up what it needs no more once all threads run: what is in force then.

        `io_uring_restricted` says whether their io_urings do only what they were made for.

        None outside of a sandbox.  Raises SandboxError.
        """
        if self._confinement is None:
            return None
        return confinement.seal(
            self._policy, self._confinement, io_uring_restricted=io_uring_restricted
        )


def _wait_for_threads() -> None:
    """Wait until threads that were joined have gone: Python's join returns a little earlier."""
    deadline = time.monotonic() + THREADS_LIMIT
    while len(list(Path("/proc/self/task").iterdir())) > 1 and time.monotonic() < deadline:
        time.sleep(THREADS_PERIOD)


def _policy(sandbox: orders.Sandbox, config: EndpointConfig | None) -> Policy:
    """What is left to a process that serves by these settings."""
    kept = frozenset(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    if not isinstance(config, VsockConfig):
        return Policy(
            keep=kept,
            user=sandbox.user,
            group=sandbox.group,
            private_memory=PRIVATE_MEMORY + _most_workers(config) * WORKER_RESERVE,
            required=sandbox.required,
        )
    # What a guest's connections lead to stays reachable, and nothing else.
    return Policy(
        keep=kept,
        user=sandbox.user,
        group=sandbox.group,
        reach=config.directories,
        network=config.reaches_network,
        private_memory=PRIVATE_MEMORY + len(config.cid) * GUEST_RESERVE,
        open_files=max(OPEN_FILES, most_descriptors(config)),
        required=sandbox.required,
    )


def _most_workers(config: EndpointConfig | None) -> int:
    """How many workers there may be; of a disk that is taken over nobody knows yet."""
    if isinstance(config, ExportConfig | NetConfig):
        return config.workers or config.queues
    return MAX_QUEUES
