# SPDX-License-Identifier: Apache-2.0
"""The settings of an export on their way from a giver of any version to a taker of any version."""

import os
from typing import Final

import msgspec

from blkd.errors import ConfigError, UpgradeError
from blkd.export.config import ExportConfig
from blkd.image.raw import default_serial
from blkd.upgrade import messages
from blkd.virtio.blk import OLDEST_SET

SETTINGS_OF_0_1: Final = frozenset(
    {
        *("image", "socket", "control", "name", "serial", "read_only", "incoming"),
        *("queues", "queue_size", "logical_block_size", "cache", "discard", "max_discard_segments"),
        *("engine", "workers", "cpus", "poll_us", "register_memory"),
    }
)
"""Every version knows them, and may have other defaults."""


def settings_for_taker(config: ExportConfig, serial: str) -> bytes:
    """The settings as JSON for a process of any version that takes the open export over.

    It has the serial that the guest knows, and nothing that matters only to a start.  What
    older versions do not know is left out where it has its default.
    """
    fresh = ExportConfig(image="", name="")
    config = msgspec.structs.replace(
        config,
        serial=serial,
        features_as=None,
        image_format=None,
        socket_group=None,
        socket_mode=fresh.socket_mode,
        control_group=None,
        control_mode=fresh.control_mode,
        group=None,  # its daemon's affair
        weight=fresh.weight,
    )
    settings = msgspec.to_builtins(config)
    defaults = msgspec.to_builtins(fresh)
    for name in settings.keys() - SETTINGS_OF_0_1:
        if settings[name] == defaults[name]:
            del settings[name]
    return msgspec.json.encode(settings)


def settings_from_giver(offer: messages.Offer) -> ExportConfig:
    """The settings to serve with.  Relative paths in them begin in the present directory.

    Raises UpgradeError where they are not understood.
    """
    try:
        config = msgspec.json.decode(offer.config, type=ExportConfig)
    except (msgspec.DecodeError, ConfigError) as error:
        raise UpgradeError(f"its settings are of another version: {error}") from error
    return config if offer.device is not None else _as_0_1(config)


def _as_0_1(config: ExportConfig) -> ExportConfig:
    """The settings with what version 0.1 made of them, which does not say what it has shown."""
    serial = config.serial
    if serial is None:
        serial = default_serial(os.path.realpath(config.image))  # also of a block device
    return msgspec.structs.replace(config, serial=serial, features_as=OLDEST_SET)
