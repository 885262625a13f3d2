# SPDX-License-Identifier: Apache-2.0
"""`blkd bench`: measures a vhost-user-blk back end, blkd or another, without a guest."""

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
WRONG_BLOCKS = {  # kind: what it says of the block
    "foreign": "the block was not written by --verify: it was lost, overwritten or never written",
    "damaged": "the block's checksum is wrong: bits changed, or parts of two writes were mixed",
    "misplaced": "the block is intact, but belongs to another place",
    "other-seed": "the block is intact, but of a run with another --seed",
    "stale": "the block is intact, but older than what was last written there",
}
seconds = click.FloatRange(0, min_open=True)


def optional_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Parse the size of an option that may be left out."""
    return None if value is None else size_arguments.callback(ctx, param, value)


@click.command()
@click.argument("socket")
@click.option(
    "--rw",
    type=click.Choice([str(rw) for rw in Rw]),
    default=str(Rw.RANDREAD),
    show_default=True,
    help="Kind of requests; rand: at random places instead of in order.",
)
@click.option(
    "--bs",
    default="4K",
    show_default=True,
    callback=size_arguments.callback,
    help="Size of a request.",
)
@click.option(
    "--iodepth",
    type=click.IntRange(1, MAX_QUEUE_SIZE),
    default=1,
    show_default=True,
    help="Requests in flight at a time, on each queue.",
)
@click.option(
    "--queues",
    type=click.IntRange(1, MAX_QUEUES),
    default=1,
    show_default=True,
    help="Queues to use.",
)
@click.option(
    "--queue-size",
    type=click.IntRange(2, MAX_QUEUE_SIZE),
    help="Descriptors of a queue, a power of two.  [default: 128, or more if --iodepth needs it]",
)
@click.option(
    "--runtime",
    type=seconds,
    metavar="SECONDS",
    help=f"How long to measure.  [default: {DEFAULT_RUNTIME:g}; with --verify, until every block"
    " was written once]",
)
@click.option(
    "--ramp",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="How long to send the same requests first, without measuring.",
)
@click.option(
    "--size",
    callback=optional_size,
    help="Use only this much of the disk, from its start.  [default: all]",
)
@click.option(
    "--rate",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Most requests a second, of all queues together; 0 for no limit.",
)
@click.option(
    "--rwmix",
    type=click.IntRange(0, PERCENT),
    default=50,
    show_default=True,
    help="Percentage of reads of --rw randrw.",
)
@click.option(
    "--seed",
    type=click.IntRange(1, LARGEST_SEED),
    default=1,
    show_default=True,
    help="The same seed makes the same requests: order, places and content.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Write blocks that describe themselves, read them back and check them.",
)
@click.option(
    "--verify-only",
    is_flag=True,
    help="Only check the blocks that an earlier --verify with this seed wrote.",
)
@click.option("--packed", is_flag=True, help="Use packed virtqueues instead of split ones.")
@click.option(
    "--event-idx/--no-event-idx",
    default=None,
    help="Whether VIRTIO_RING_F_EVENT_IDX must be offered, or is not used.  [default: if offered]",
)
@click.option(
    "--indirect/--no-indirect",
    default=None,
    help="The same of VIRTIO_RING_F_INDIRECT_DESC.  [default: if offered]",
)
@click.option(
    "--pid",
    type=click.IntRange(1),
    help="Process of the back end, whose processor time is measured.",
)
@click.option(
    "--cpu", type=click.IntRange(0), help="Pin the thread that sends the requests to this CPU."
)
@click.option(
    "--timeout",
    type=seconds,
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Fail when the back end has answered nothing for so long.",
)
@click.option(
    "--reconnect",
    is_flag=True,
    help="Continue when the back end was killed and another listens on the socket.",
)
@click.option("--quiet", is_flag=True, help="Show no progress on a terminal.")
@json_option
def bench(socket: str, *, as_json: bool, quiet: bool, rw: str, **options: Any) -> None:
    """Measure the vhost-user-blk back end at SOCKET, without a virtual machine.

    Prints requests a second, latencies and processor time.  One CPU is busy all the time.
    write, randwrite, randrw and trim destroy what the disk holds.  The exit status is 1 if a
    request failed or a block was wrong.  SIGINT ends the run and prints what was measured.
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
    """The error of a run that did not go well, or None."""
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
