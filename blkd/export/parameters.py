# SPDX-License-Identifier: Apache-2.0
"""What the settings of an export come to: its workers, and the device that its image becomes.

The last step of a setting: a text of the command line, or JSON of a live upgrade, becomes a
field of `ExportConfig`, which is checked by itself; here the fields meet the image and the
host, and what is left to them is decided.
"""

import os

from blkd.dataplane import WorkerPlan, discards_by_command
from blkd.errors import ConfigError
from blkd.export.config import ExportConfig
from blkd.image.base import Image
from blkd.image.raw import default_serial
from blkd.virtio.blk import NEWEST_SET, SECTOR_BYTES, BlkParameters


def worker_plan(config: ExportConfig) -> WorkerPlan:
    """The workers of an export.  Raises ConfigError where they may not run as configured."""
    allowed = os.sched_getaffinity(0)
    if missing := set(config.cpus) - allowed:
        raise ConfigError(
            f"CPU {min(missing)} cannot be used",
            hint=f"this process may run on {', '.join(map(str, sorted(allowed)))}",
        )
    # One CPU is left to the guest: workers that poll would keep its own CPUs from it.
    usable = len(set(config.cpus)) or max(1, len(allowed) - 1)
    workers = min(config.workers or usable, config.queues)
    return WorkerPlan(workers, config.cpus, config.poll_us, config.register_memory)


def parameters(config: ExportConfig, image: Image) -> BlkParameters:
    """The device that an image becomes under a configuration."""
    limits = image.limits
    can_discard = limits.punches or discards_by_command(image.io(0))
    return BlkParameters(
        capacity=limits.size // SECTOR_BYTES,
        logical_block_size=limits.logical_block_size,
        physical_block_size=limits.physical_block_size,
        optimal_io_size=limits.optimal_io_size,
        discard_granularity=limits.discard_granularity if can_discard else 0,
        zeroes_unmap=limits.punches,
        read_only=config.read_only,
        write_back=config.cache != "writethrough",
        discard=config.discard,
        max_discard_segments=config.max_discard_segments,
        queues=config.queues,
        queue_size=config.queue_size,
        serial=config.serial if config.serial is not None else default_serial(image.identity),
        feature_set=config.features_as or NEWEST_SET,
    )
