# SPDX-License-Identifier: Apache-2.0
"""The commands that ask a process of `blkd serve` something over its control socket."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from blkd.cli import size_arguments
from blkd.cli.output import json_option, print_result
from blkd.control import client, models
from blkd.errors import ControlError

STOP_LIMIT = 10.0  # seconds; a process gives itself five to end

RESIZE_WAIT = 40.0  # seconds for a shrink to drain and for a front end to read the size
TIMEOUT = "blkd.timeout"  # where click keeps --timeout

Command = TypeVar("Command", bound=Callable[..., object])


def control_option(command: Command) -> Command:
    """Add --control, which the command is passed, and --timeout, which `timeout` returns."""
    limited = click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=client.ANSWER_LIMIT,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for an answer; what a pause or a resize takes is added.",
        expose_value=False,
        callback=_keep_timeout,
    )(command)
    return click.option(
        "--control",
        required=True,
        metavar="PATH",
        help="The control socket of the disk: the PATH of blkd serve --control.",
    )(limited)


def _keep_timeout(ctx: click.Context, _param: click.Parameter, value: float) -> None:
    ctx.meta[TIMEOUT] = value


def timeout() -> float:
    """The value of --timeout of the command that runs, in seconds."""
    seconds: float = click.get_current_context().meta[TIMEOUT]
    return seconds


def call(control: str, method: str, target: str, body: object = None, *, wait: float = 0) -> Any:
    """Call the API at `control`: its answer, which may take --timeout and `wait` seconds."""
    return client.call(control, method, target, body, wait=wait, limit=timeout())


@click.command()
@control_option
@json_option
def show(control: str, *, as_json: bool) -> None:
    """Show the settings and the state of a served disk, and the VMM that uses it."""
    print_result(call(control, "GET", models.EXPORT), title="disk", as_json=as_json)


@click.command()
@control_option
@json_option
def stats(control: str, *, as_json: bool) -> None:
    """Show how many requests a served disk has answered, in total and for each queue."""
    print_result(call(control, "GET", models.STATS), title="counters", as_json=as_json)


@click.command()
@click.argument("size", callback=size_arguments.positive)
@control_option
@click.option("--force", is_flag=True, help="Allow SIZE to be smaller: data beyond it is lost.")
@json_option
def resize(control: str, size: int, *, force: bool, as_json: bool) -> None:
    """Change the size of a served disk to SIZE (10G, 512M) while its guest runs."""
    wanted = models.ResizeExport(size=size, force=force)
    result = call(control, "POST", models.RESIZE, wanted, wait=RESIZE_WAIT)
    print_result(result, title="resized", as_json=as_json)


@click.command()
@control_option
@click.option(
    "--deadline",
    type=click.FloatRange(0, models.MAX_DEADLINE),
    default=models.DEFAULT_DEADLINE,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for requests that have begun.",
)
@json_option
def pause(control: str, deadline: float, *, as_json: bool) -> None:
    """Stop reading and writing the image; the guest's requests wait for blkd resume.

    Requests that have begun are completed first.  The exit status is 0 once all have been,
    so that the image does not change any more, and 1 if some have not.
    """
    result = call(
        control, "POST", models.PAUSE, models.PauseExport(deadline=deadline), wait=deadline
    )
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


@click.command()
@control_option
@json_option
def resume(control: str, *, as_json: bool) -> None:
    """End a pause: serve the requests that have waited."""
    print_result(call(control, "POST", models.RESUME), title="disk", as_json=as_json)


@click.command()
@control_option
@json_option
def stop(control: str, *, as_json: bool) -> None:
    """End a served disk as SIGTERM does: requests that have begun are completed first.

    Returns when the process of blkd serve has ended.
    """
    with client.watch_process(control) as ended:
        print_result(call(control, "POST", models.STOP), title="last state", as_json=as_json)
        if not ended(STOP_LIMIT):
            raise ControlError(
                f"it has not ended within {STOP_LIMIT:g} s",
                hint="requests may be stuck in the storage: SIGKILL ends the process without them",
            )


@click.command()
@control_option
@json_option
def kill(control: str, *, as_json: bool) -> None:
    """End a served disk at once; what becomes of requests that have begun is not known."""
    print_result(call(control, "POST", models.KILL), title="last state", as_json=as_json)
