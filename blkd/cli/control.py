# SPDX-License-Identifier: Apache-2.0
"""The commands that speak to a serving `blkd` over its control socket."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from blkd.cli import size_arguments
from blkd.cli.output import json_option, print_result
from blkd.control import client, models
from blkd.errors import ControlError

STOP_LIMIT = 10.0  # seconds; a process that is told to end has five

RESIZE_WAIT = 40.0  # seconds that a shrink may drain, and a front end take to fetch the size
TIMEOUT = "blkd.timeout"  # where click keeps what --timeout says

Command = TypeVar("Command", bound=Callable[..., object])


def control_option(command: Command) -> Command:
    """Add --control, which the command is given, and --timeout, which `timeout` tells."""
    limited = click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=client.ANSWER_LIMIT,
        show_default=True,
        metavar="SECONDS",
        help="How long the answer may take, beyond what the call waits for by its nature.",
        expose_value=False,
        callback=_keep_timeout,
    )(command)
    return click.option(
        "--control", required=True, metavar="PATH", help="The socket given to blkd serve --control."
    )(limited)


def _keep_timeout(ctx: click.Context, _param: click.Parameter, value: float) -> None:
    ctx.meta[TIMEOUT] = value


def timeout() -> float:
    """What --timeout says to the command that runs."""
    seconds: float = click.get_current_context().meta[TIMEOUT]
    return seconds


def call(control: str, method: str, target: str, body: object = None, *, wait: float = 0) -> Any:
    """What the API at `control` answers within --timeout."""
    return client.call(control, method, target, body, wait=wait, limit=timeout())


@click.command()
@control_option
@json_option
def show(control: str, *, as_json: bool) -> None:
    """Show the state of a served disk."""
    print_result(call(control, "GET", models.EXPORT), title="disk", as_json=as_json)


@click.command()
@control_option
@json_option
def stats(control: str, *, as_json: bool) -> None:
    """Show the counters of a served disk."""
    print_result(call(control, "GET", models.STATS), title="counters", as_json=as_json)


@click.command()
@click.argument("size", callback=size_arguments.positive)
@control_option
@click.option("--force", is_flag=True, help="Shrink as well: the guest loses what is beyond.")
@json_option
def resize(control: str, size: int, *, force: bool, as_json: bool) -> None:
    """Make a served disk SIZE bytes large (10G, 512M) while the guest runs."""
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
    help="How long to wait for the requests in flight.",
)
@json_option
def pause(control: str, deadline: float, *, as_json: bool) -> None:
    """Fetch no more requests of the guest; they wait until blkd resume.

    The exit status is 0 once nothing is in flight, and 1 if something still is.
    """
    result = call(
        control, "POST", models.PAUSE, models.PauseExport(deadline=deadline), wait=deadline
    )
    print_result(result, title="pause", as_json=as_json)
    if not result["paused"]:
        raise ControlError("blkd resume came meanwhile: nothing is paused")
    if not result.get("drained", result["in_flight"] == 0):
        count = result["in_flight"]
        still = f"{count} {'request is' if count == 1 else 'requests are'} still in flight"
        raise ControlError(
            f"{still} after {deadline:g} s",
            hint="nothing more is fetched: blkd pause waits on, blkd resume calls it off",
        )


@click.command()
@control_option
@json_option
def resume(control: str, *, as_json: bool) -> None:
    """Go on with the guest's requests after blkd pause."""
    print_result(call(control, "POST", models.RESUME), title="disk", as_json=as_json)


@click.command()
@control_option
@json_option
def stop(control: str, *, as_json: bool) -> None:
    """End a served disk in good order, as SIGTERM does: what is in flight is completed.

    Returns when the process has ended.
    """
    with client.watched(control) as ended:
        print_result(call(control, "POST", models.STOP), title="last state", as_json=as_json)
        if not ended(STOP_LIMIT):
            raise ControlError(
                f"it has not ended within {STOP_LIMIT:g} s",
                hint="its last requests may be stuck in the disk; SIGKILL leaves them there",
            )


@click.command()
@control_option
@json_option
def kill(control: str, *, as_json: bool) -> None:
    """End a served disk at once, abandoning the requests in flight."""
    print_result(call(control, "POST", models.KILL), title="last state", as_json=as_json)
