# SPDX-License-Identifier: Apache-2.0
"""The asyncio face of the data path: the only package that imports the extensions that serve."""

from blkd.dataplane.engines import discards_by_command
from blkd.dataplane.plane import DataPlane
from blkd.dataplane.probe import probe_io_uring, restricts_io_uring, traced_files
from blkd.dataplane.served_disk import HeldRequests, RequestInFlight, ServedDisk
from blkd.dataplane.served_net import ServedNet
from blkd.dataplane.workers import WorkerPlan

__all__ = [
    "DataPlane",
    "HeldRequests",
    "RequestInFlight",
    "ServedDisk",
    "ServedNet",
    "WorkerPlan",
    "discards_by_command",
    "probe_io_uring",
    "restricts_io_uring",
    "traced_files",
]
