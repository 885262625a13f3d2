# SPDX-License-Identifier: Apache-2.0
"""`blkd bench`: loads any vhost-user-blk back end and tells how it did."""

import contextlib
import sys
from typing import Any

import click

from blkd.cli import size_arguments
from blkd.cli.output import json_option, print_result
from blkd.errors import BenchError
from blkd.loadgen.phases import bench as load
from blkd.loadgen.progress import line
from blkd.loadgen.result import Result
from blkd.loadgen.workload import DEFAULT_RUNTIME, MAX_QUEUES, PERCENT, Rw, Workload
from blkd.virtio.device import MAX_QUEUE_SIZE

LARGEST_SEED = 2**63 - 1
WRONG_BLOCKS = {  # kind: what it hints at
    "foreign": "nothing that this seed wrote: never written, lost, or overwritten by others",
    "damaged": "its checksum is wrong: bits were changed, or parts of two writes were mixed",
    "misplaced": "whole, but written for another place",
    "other-seed": "whole, but of a run with another --seed",
    "stale": "whole, but older than what was last written there",
}
seconds = click.FloatRange(0, min_open=True)


def optional_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A size, where one is given."""
    return None if value is None else size_arguments.callback(ctx, param, value)


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
    "--bs",
    default="4K",
    show_default=True,
    callback=size_arguments.callback,
    help="Bytes of a request.",
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
    help=f"How long. [default: {DEFAULT_RUNTIME:g}; with --verify until all is written once]",
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
@click.option(
    "--verify", is_flag=True, help="Write blocks that describe themselves, read back, check."
)
@click.option(
    "--verify-only", is_flag=True, help="Check all that --verify with this seed has left."
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
@click.option(
    "--reconnect",
    is_flag=True,
    help="Go on when the back end was killed and another one listens in its place.",
)
@click.option("--quiet", is_flag=True, help="No progress line on a terminal.")
@json_option
def bench(socket: str, *, as_json: bool, quiet: bool, rw: str, **options: Any) -> None:
    """Load the vhost-user-blk back end at SOCKET and tell how it did.

    It polls, so one processor is busy all the time.  The exit status is 1 if a request failed
    or a block was wrong.  SIGINT ends the load and prints what was measured.
    """
    try:
        work = Workload(rw=Rw(rw), **options)
    except BenchError as error:
        raise click.UsageError(f"{error}: {error.hint}") from error
    with contextlib.ExitStack() as stack:
        watch = None if quiet or not sys.stderr.isatty() else stack.enter_context(line())
        result = load(socket, work, watch)
    print_result(result, title="bench", as_json=as_json)
    if fault := complaint(result, work):
        raise fault


def complaint(result: Result, work: Workload) -> BenchError | None:
    """What is to be said of a run that did not go well, or None."""
    if result.wrong_blocks:
        first = next(wrong for wrong in result.wrong if wrong.what in WRONG_BLOCKS)
        return BenchError(
            f"{result.wrong_blocks} wrong blocks; the first, {first.what}, at {first.offset}: "
            f"byte {first.byte}: found {first.found}, expected {first.expected}",
            hint=WRONG_BLOCKS[first.what],
        )
    if result.errors:
        first = result.wrong[0]
        return BenchError(
            f"{result.errors} requests failed; the first, a {first.kind} at {first.offset}: "
            f"{first.what}, found {first.found}, expected {first.expected}",
            hint="the back end's log may say why",
        )
    if result.interrupted and (work.verify or work.verify_only):
        return BenchError(
            "interrupted before everything was checked", hint="run --verify again, to its end"
        )
    return None
