# SPDX-License-Identifier: Apache-2.0
"""`blkd bench`: loads any vhost-user-blk back end and tells how it did."""

from typing import Any

import click

from blkd.bench.run import bench as load
from blkd.bench.workload import DEFAULT_RUNTIME, MAX_QUEUES, PERCENT, Rw, Workload
from blkd.cli import sizes
from blkd.cli.output import json_option, print_result
from blkd.errors import BenchError
from blkd.virtio.device import MAX_QUEUE_SIZE

LARGEST_SEED = 2**63 - 1
seconds = click.FloatRange(0, min_open=True)


def optional_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A size, where one is given."""
    return None if value is None else sizes.callback(ctx, param, value)


@click.command()
@click.argument("socket")
@click.option(
    "--rw",
    type=click.Choice([str(rw) for rw in Rw]),
    default=str(Rw.RANDREAD),
    show_default=True,
    help="What is asked for, in order or at random places.",
)
@click.option(
    "--bs", default="4K", show_default=True, callback=sizes.callback, help="Bytes of a request."
)
@click.option(
    "--iodepth",
    type=click.IntRange(1, MAX_QUEUE_SIZE),
    default=1,
    show_default=True,
    help="Requests in flight on each queue.",
)
@click.option("--queues", type=click.IntRange(1, MAX_QUEUES), default=1, show_default=True)
@click.option(
    "--queue-size",
    type=click.IntRange(2, MAX_QUEUE_SIZE),
    help="Descriptors of a ring, a power of two. [default: 128, or as many as are needed]",
)
@click.option(
    "--runtime",
    type=seconds,
    metavar="SECONDS",
    help=f"How long. [default: {DEFAULT_RUNTIME:g}]",
)
@click.option(
    "--ramp",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="The same load first, without counting.",
)
@click.option(
    "--size", callback=optional_size, help="Use only the disk's first bytes. [default: all]"
)
@click.option(
    "--rate",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Requests a second at the most, of all queues together; 0 is no limit.",
)
@click.option(
    "--rwmix",
    type=click.IntRange(0, PERCENT),
    default=50,
    show_default=True,
    help="Percent of reads in randrw.",
)
@click.option(
    "--seed",
    type=click.IntRange(1, LARGEST_SEED),
    default=1,
    show_default=True,
    help="Of places, order and content.",
)
@click.option("--packed", is_flag=True, help="Packed rings instead of split ones.")
@click.option(
    "--event-idx/--no-event-idx", default=None, help="[default: what the back end offers]"
)
@click.option("--indirect/--no-indirect", default=None, help="[default: likewise]")
@click.option(
    "--pid",
    type=click.IntRange(1),
    help="The back end's process: measure its processor time.",
)
@click.option("--cpu", type=click.IntRange(0), help="Pin the polling thread there.")
@click.option(
    "--timeout",
    type=seconds,
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Give the back end up when it has answered nothing for so long.",
)
@json_option
def bench(socket: str, *, as_json: bool, rw: str, **options: Any) -> None:
    """Load the vhost-user-blk back end at SOCKET and tell how it did.

    The exit status is 1 if a request failed.
    """
    try:
        work = Workload(rw=Rw(rw), **options)
    except BenchError as error:
        raise click.UsageError(f"{error}: {error.hint}") from error
    print_result(load(socket, work), title="bench", as_json=as_json)
