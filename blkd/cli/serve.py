# SPDX-License-Identifier: Apache-2.0
"""`blkd serve`: one export in the foreground."""

import re
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from blkd.cli import serving
from blkd.cli.output import json_option, print_result
from blkd.export.config import (
    CONTROL_MODE,
    MAX_POLL_US,
    MAX_QUEUES,
    MIN_QUEUE_SIZE,
    SERIAL_BYTES,
    SOCKET_MODE,
    CacheMode,
    ExportConfig,
    cpu_list,
)
from blkd.export.views import ExportState
from blkd.host import log, signals
from blkd.image.engine import EngineChoice
from blkd.virtio.blk import FEATURE_SETS
from blkd.virtio.device import MAX_QUEUE_SIZE


def _power_of_two(_ctx: click.Context, _param: click.Parameter, value: int) -> int:
    if value & (value - 1):
        raise click.BadParameter(f"{value} is no power of two")
    return value


def _number(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else int(value)


def _serial(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.isascii():
        raise click.BadParameter(f"{value!r} has characters that are not ASCII")
    if value is not None and len(value) > SERIAL_BYTES:
        raise click.BadParameter(
            f"{value!r} has {len(value)} characters; a guest can be told {SERIAL_BYTES}"
        )
    return value


def _mode(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    if re.fullmatch("0?[0-7]{3}", value) is None:
        raise click.BadParameter(f"{value!r} is no mode in octal; write 0660 for owner and group")
    return int(value, 8)


def _cpus(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        return cpu_list(value or "")
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _are_one(one: str, other: str) -> bool:
    """Whether two paths are of one file, which need not be there."""
    return Path(one).parent.resolve() / Path(one).name == (
        Path(other).parent.resolve() / Path(other).name
    )


@click.command()
@click.argument("image", metavar="IMAGE")
@click.option("--socket", metavar="PATH", required=True, help="Where the VMM is to connect.")
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["raw"]),
    help="Serve IMAGE as it is, also if it looks like an image of another format.",
)
@click.option("--name", help="What to call the disk; from the image if not given.")
@click.option("--read-only", is_flag=True, help="Never write; others may read the image too.")
@click.option(
    "--queues",
    type=click.IntRange(1, MAX_QUEUES),
    default=4,
    show_default=True,
    help="Most queues that a VMM may use; as many as the guest has CPUs is best.",
)
@click.option(
    "--queue-size",
    type=click.IntRange(MIN_QUEUE_SIZE, MAX_QUEUE_SIZE),
    callback=_power_of_two,
    default=256,
    show_default=True,
    help="The queue size that the VMM is to use, a power of two; requests are fitted to it.",
)
@click.option(
    "--serial",
    callback=_serial,
    help="The disk's serial in the guest; from the image if not given.",
)
@click.option(
    "--features-as",
    type=click.Choice(list(FEATURE_SETS)),
    help="Offer no newer features than this version of blkd did; the newest if not given.",
)
@click.option(
    "--cache",
    type=click.Choice(get_args(CacheMode)),
    default="none",
    show_default=True,
    help="none: O_DIRECT; writeback: the host's page cache; writethrough: durable writes.",
)
@click.option(
    "--logical-block-size",
    type=click.Choice(["512", "4096"]),
    callback=_number,
    help="The smallest request; what the file system allows if not given.",
)
@click.option(
    "--engine",
    type=click.Choice(get_args(EngineChoice)),
    default="auto",
    show_default=True,
    help="uring: asynchronous I/O; inline: at once what cannot wait; auto: asks the image.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_QUEUES),
    help="Threads for all queues; if not given, one a queue, but one CPU stays free.",
)
@click.option(
    "--cpus", callback=_cpus, help="Pin the workers to these CPUs in turn, for example 2-5,8."
)
@click.option(
    "--poll-us",
    type=click.IntRange(0, MAX_POLL_US),
    default=32,
    show_default=True,
    help="Most microseconds that a worker looks on before it sleeps, while that pays.",
)
@click.option(
    "--register-memory",
    is_flag=True,
    help="Pin the guest's memory once, not for each request; needs locked memory."
    "  Corrupts the disk of a guest with a balloon or virtio-mem.",
)
@click.option(
    "--incoming",
    is_flag=True,
    help="A guest is to be migrated here: lock the image only when its rings start.",
)
@click.option("--no-discard", is_flag=True, help="Keep the guest from giving space back.")
@click.option(
    "--max-discard-seg",
    "max_discard_segments",
    type=click.IntRange(1, 256),
    default=32,
    show_default=True,
    help="Most ranges in one discard.",
)
@click.option("--control", metavar="PATH", help="Answer the control API on this socket.")
@click.option("--socket-group", metavar="GROUP", help="The group of --socket, such as kvm.")
@click.option(
    "--socket-mode",
    metavar="MODE",
    callback=_mode,
    default=f"{SOCKET_MODE:04o}",
    show_default=True,
    help="Who may connect to --socket, in octal.",
)
@click.option("--control-group", metavar="GROUP", help="The group of --control.")
@click.option(
    "--control-mode",
    metavar="MODE",
    callback=_mode,
    default=f"{CONTROL_MODE:04o}",
    show_default=True,
    help="Who may connect to --control, and so end the disk.",
)
@json_option
def serve(*, as_json: bool, no_discard: bool, **settings: Any) -> None:
    """Make IMAGE, a raw image or a block device, a disk of a virtual machine.

    Runs until SIGTERM or SIGINT, which let the requests in flight complete.
    SIGHUP reads the image's size again.
    """
    if settings["control"] and _are_one(settings["socket"], settings["control"]):
        raise click.UsageError(f"--socket and --control are both {settings['control']}")
    settings["name"] = settings["name"] or Path(settings["image"]).stem
    try:
        config = msgspec.convert(settings | {"discard": not no_discard}, ExportConfig)
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error)) from error
    log.configure(json=as_json)

    def announce(state: ExportState) -> None:
        print_result(state, title="serving", as_json=as_json)

    serving.run(config, announce)
    signals.leave(0)
