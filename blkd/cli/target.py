# SPDX-License-Identifier: Apache-2.0
"""Whom a command asks: an export of a daemon by its name, or one process by its control socket."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import click

from blkd.cli import size_arguments
from blkd.cli.completion import complete_names
from blkd.cli.waiting import watch
from blkd.control import addresses, client, models
from blkd.control.daemon_client import Daemon, Observe, export_path
from blkd.control.daemon_models import ChangeExport
from blkd.errors import ControlError

STOP_LIMIT = 10.0  # seconds; a process gives itself five to end
RESIZE_WAIT = 40.0  # seconds for a shrink to drain and for a front end to read the size

Command = TypeVar("Command", bound=Callable[..., object])


class Target(Protocol):
    """What is served: each method is a call of an API, and returns its answer.

    All raise SocketError where nobody answers, and ControlError where the call is refused or no
    answer comes in time.
    """

    def show(self) -> Any:
        """Its settings and its state."""

    def in_flight(self) -> Any:
        """Its requests in flight."""

    def stats(self) -> Any:
        """Its counters."""

    def resize(self, wanted: models.ResizeExport) -> Any:
        """Change its size."""

    def pause(self, wanted: models.PauseExport) -> Any:
        """Fetch no more requests."""

    def resume(self) -> Any:
        """End a pause."""

    def limits(self) -> Any:
        """The text of its limits."""

    def change_limits(self, settings: Mapping[str, Any]) -> Any:
        """Have it keep other limits; of a daemon's also a group."""

    def retry(self) -> Any:
        """Begin held requests again."""

    def stop(self) -> Any:
        """End it in good order; returns when its process has ended."""

    def kill(self) -> Any:
        """End it at once."""


@dataclass(frozen=True, slots=True)
class ByControl:
    """A process that serves, at its control socket `path`."""

    path: str
    limit: float

    def show(self) -> Any:
        """Its settings and its state."""
        return self._call("GET", models.EXPORT)

    def in_flight(self) -> Any:
        """Its requests in flight."""
        return self._call("GET", models.INFLIGHT)

    def stats(self) -> Any:
        """Its counters."""
        return self._call("GET", models.STATS)

    def resize(self, wanted: models.ResizeExport) -> Any:
        """Change its size."""
        return self._call("POST", models.RESIZE, wanted, wait=RESIZE_WAIT)

    def pause(self, wanted: models.PauseExport) -> Any:
        """Fetch no more requests."""
        return self._call("POST", models.PAUSE, wanted, wait=wanted.deadline)

    def resume(self) -> Any:
        """End a pause."""
        return self._call("POST", models.RESUME)

    def limits(self) -> Any:
        """The text of its limits."""
        return self._call("GET", models.LIMITS)["limit"]

    def change_limits(self, settings: Mapping[str, Any]) -> Any:
        """Have it keep other limits."""
        if settings.keys() != {"limit"}:
            raise ControlError("groups are the daemon's", hint="blkd limit NAME group=...")
        return self._call("POST", models.LIMITS, models.LimitExport(settings["limit"]))

    def retry(self) -> Any:
        """Begin held requests again."""
        return self._call("POST", models.RETRY)

    def stop(self) -> Any:
        """End it in good order; returns when its process has ended."""
        with client.watch_process(self.path) as ended:
            last = self._call("POST", models.STOP)
            if not ended(STOP_LIMIT):
                raise ControlError(
                    f"it has not ended within {STOP_LIMIT:g} s",
                    hint="requests may be stuck in the storage: SIGKILL ends it without them",
                )
        return last

    def kill(self) -> Any:
        """End it at once."""
        return self._call("POST", models.KILL)

    def _call(self, method: str, target: str, body: object = None, *, wait: float = 0) -> Any:
        return client.call(self.path, method, target, body, wait=wait, limit=self.limit)


@dataclass(frozen=True, slots=True)
class ByName:
    """An export of a daemon."""

    daemon: Daemon
    name: str
    observe: Observe | None = None
    """Is shown how far calls are that take long."""

    def show(self) -> Any:
        """Its settings and its state."""
        return self.daemon.get(export_path(self.name))

    def in_flight(self) -> Any:
        """Its requests in flight."""
        return self.daemon.get(export_path(self.name, verb="inflight"))

    def stats(self) -> Any:
        """Its counters."""
        return self.daemon.get(export_path(self.name, verb="stats"))

    def resize(self, wanted: models.ResizeExport) -> Any:
        """Change its size."""
        return self.act("resize", wanted)

    def pause(self, wanted: models.PauseExport) -> Any:
        """Fetch no more requests."""
        return self.act("pause", wanted)

    def resume(self) -> Any:
        """End a pause."""
        return self.act("resume")

    def limits(self) -> Any:
        """The text of its limits."""
        return self.show()["settings"].get("limit", "")

    def change_limits(self, settings: Mapping[str, Any]) -> Any:
        """Have it keep other limits, now and at each start, or belong to a group."""
        kept = {each: None if value == "" else value for each, value in settings.items()}
        wanted = ChangeExport(settings=kept)
        place = export_path(self.name)
        return self.daemon.call("PATCH", place, wanted, observe=self.observe)

    def retry(self) -> Any:
        """Begin held requests again."""
        return self.act("retry")

    def stop(self) -> Any:
        """Serve it no more; returns when its process has ended."""
        return self.act("stop")

    def kill(self) -> Any:
        """End its process at once."""
        return self.act("kill")

    def act(self, verb: str, body: object = None) -> Any:
        """What a verb of the API comes to."""
        place = export_path(self.name, verb=verb)
        return self.daemon.call("POST", place, body, observe=self.observe)


def daemon_option(command: Command) -> Command:
    """Add --daemon and --timeout; the command is passed `daemon`, whom it asks."""

    @functools.wraps(command)
    def asking(*, daemon: str | None, timeout: float, **arguments: Any) -> object:
        asked = Daemon(daemon or addresses.daemon_socket(), timeout)
        return command(daemon=asked, **arguments)

    return timeout_option(_daemon_path(asking))  # type: ignore[return-value]


def _daemon_path(command: Command) -> Command:
    return click.option(
        "--daemon",
        metavar="PATH",
        help="The socket of the daemon; if not given, that of BLKD_SOCKET, or else the usual one.",
    )(command)


def control_path(command: Command) -> Command:
    """Add --control, which the command is passed."""
    return click.option(
        "--control",
        metavar="PATH",
        help="Ask the process with this control socket, instead of the daemon.",
    )(command)


def timeout_option(command: Command) -> Command:
    """Add --timeout, which the command is passed as seconds."""
    return click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=client.ANSWER_LIMIT,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for an answer; what a pause or a resize takes is added.",
    )(command)


def name_argument(command: Command) -> Command:
    """Add the argument NAME, which may be left out, with completion."""
    return click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_names)(
        command
    )


class Addressed(click.Command):
    """A command for what is served, which is named either by NAME or by --control.

    Of [NAME] SIZE a single argument is the SIZE.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and see that exactly one of the two is given."""
        left = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            if "size" in ctx.params:
                _read_size(ctx)
            require_one(ctx.params["name"], ctx.params["control"])
        return left


def _read_size(ctx: click.Context) -> None:
    """Have the parameter `size` be bytes, which may stand in the place of a name."""
    if ctx.params["size"] is None:
        ctx.params["size"], ctx.params["name"] = ctx.params["name"], None
    argument = next(each for each in ctx.command.params if each.name == "size")
    if (written := ctx.params["size"]) is None:
        raise click.MissingParameter(ctx=ctx, param=argument)
    try:
        ctx.params["size"] = size_arguments.positive(ctx, argument, written)
    except click.BadParameter as error:
        raise click.BadParameter(error.message, ctx, argument) from error


def target_options(command: Command) -> Command:
    """Add --control, --daemon and --timeout to an `Addressed` command with the argument `name`.

    The command is passed `target`, whom it asks, instead of `name`.
    """

    @functools.wraps(command)
    def asking(
        *, name: str | None, control: str | None, daemon: str | None, timeout: float, **rest: Any
    ) -> object:
        if control is not None:
            return command(target=ByControl(control, timeout), **rest)
        asked = Daemon(daemon or addresses.daemon_socket(), timeout)
        with contextlib.ExitStack() as stack:
            observe = stack.enter_context(watch(as_json=rest["as_json"]))
            return command(target=ByName(asked, name or "", observe), **rest)

    return control_path(timeout_option(_daemon_path(asking)))  # type: ignore[return-value]


def require_one(name: str | None, control: str | None) -> None:
    """Raise UsageError unless an export is named in one of the two ways."""
    if (name is None) == (control is None):
        raise click.UsageError("give the NAME of an export of the daemon, or --control PATH")
