# SPDX-License-Identifier: Apache-2.0
"""The commands that ask something of what is served: an export of a daemon, or a process."""

import click

from blkd.cli.output import json_option, print_result
from blkd.cli.target import Addressed, Target, name_argument, target_options
from blkd.control import models
from blkd.errors import ControlError


@click.command(cls=Addressed)
@name_argument
@target_options
@json_option
def show(target: Target, *, as_json: bool) -> None:
    """Show the settings and the state of an export, and the VMM that uses it."""
    print_result(target.show(), title="export", as_json=as_json)


@click.command(cls=Addressed)
@name_argument
@target_options
@json_option
def inflight(target: Target, *, as_json: bool) -> None:
    """List the requests that an export has fetched and not answered, the oldest first."""
    print_result(target.in_flight(), title="in flight", as_json=as_json)


@click.command(cls=Addressed)
@name_argument
@target_options
@json_option
def stats(target: Target, *, as_json: bool) -> None:
    """Show how many requests an export has answered, in total and for each queue."""
    print_result(target.stats(), title="counters", as_json=as_json)


@click.command(cls=Addressed)
@name_argument
@click.argument("size", required=False, metavar="SIZE")
@target_options
@click.option("--force", is_flag=True, help="Allow SIZE to be smaller: data beyond it is lost.")
@json_option
def resize(target: Target, size: int, *, force: bool, as_json: bool) -> None:
    """Change the size of a disk to SIZE (10G, 512M) while its guest runs."""
    wanted = models.ResizeExport(size=size, force=force)
    print_result(target.resize(wanted), title="resized", as_json=as_json)


@click.command(cls=Addressed)
@name_argument
@target_options
@click.option(
    "--deadline",
    type=click.FloatRange(0, models.MAX_DEADLINE),
    default=models.DEFAULT_DEADLINE,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for requests that have begun.",
)
@json_option
def pause(target: Target, deadline: float, *, as_json: bool) -> None:
    """Stop reading and writing the image; the guest's requests wait for blkd resume.

    Requests that have begun are completed first.  The exit status is 0 once all have been,
    so that the image does not change any more, and 1 if some have not.
    """
    result = target.pause(models.PauseExport(deadline=deadline))
    print_result(result, title="pause", as_json=as_json)
    if not result["paused"]:
        raise ControlError("blkd resume ended the pause: the disk is not paused")
    if not result.get("drained", result["in_flight"] == 0):
        count = result["in_flight"]
        still = f"{count} {'request is' if count == 1 else 'requests are'} still in flight"
        raise ControlError(
            f"{still} after {deadline:g} s",
            hint="the disk stays paused: blkd pause waits longer, blkd resume ends the pause",
        )


@click.command(cls=Addressed)
@name_argument
@target_options
@json_option
def resume(target: Target, *, as_json: bool) -> None:
    """End a pause: serve the requests that have waited."""
    print_result(target.resume(), title="export", as_json=as_json)


@click.command(cls=Addressed)
@name_argument
@target_options
@json_option
def retry(target: Target, *, as_json: bool) -> None:
    """Try held requests again now, for example once there is space for the image.

    The exit status is 0 once none is held any more, and 1 if the image still fails some.
    """
    result = target.retry()
    print_result(result, title="retry", as_json=as_json)
    if result["held"]:
        raise ControlError(f"still held: {result['reason']}")


@click.command(cls=Addressed)
@name_argument
@target_options
@json_option
def stop(target: Target, *, as_json: bool) -> None:
    """End what is served as SIGTERM does: requests that have begun are completed first.

    Returns when its process has ended.  The daemon keeps an export and does not serve it until blkd
    start.
    """
    print_result(target.stop(), title="last state", as_json=as_json)


@click.command(cls=Addressed)
@name_argument
@target_options
@json_option
def kill(target: Target, *, as_json: bool) -> None:
    """End a process that serves at once; what becomes of requests that have begun is not known.

    The daemon starts another one for the export.
    """
    print_result(target.kill(), title="last state", as_json=as_json)
