# SPDX-License-Identifier: Apache-2.0
"""The commands of `blkd`; each one's module is imported when it is used."""

import importlib
from typing import IO, Any

import click
import msgspec

from blkd import __version__
from blkd.cli.output import printable
from blkd.errors import BlkdError

FOR_PROGRAMS = "blkd.for_programs"

COMMANDS = {  # name: (module, what the list of commands says)
    "serve": ("serve", "Make an image a disk of a virtual machine."),
    "image": ("image", "Create images and tell about them."),
    "show": ("control", "Show the state of a served disk."),
    "stats": ("control", "Show the counters of a served disk."),
    "resize": ("control", "Give a served disk another size."),
    "pause": ("control", "Let a served disk's requests wait."),
    "resume": ("control", "Go on after a pause."),
    "stop": ("control", "End a served disk in good order."),
    "kill": ("control", "End a served disk at once."),
    "upgrade": ("upgrade", "Take a served disk over, in a new process."),
    "connect": ("connect", "Print how to attach a VMM to a socket."),
    "bench": ("bench", "Load a back end and measure it."),
    "doctor": ("doctor", "Tell whether this host can do the job."),
}


class Cli(click.Group):
    """A group that shows a BlkdError as one line and its hint, with exit status 1."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Every command, in the order in which one meets them."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """The command `name`, from its module."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"blkd.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether a program is to read what is printed."""
        ctx.meta[FOR_PROGRAMS] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BlkdError as error:
            if ctx.meta[FOR_PROGRAMS]:
                raise JsonError(str(error), error.hint) from error
            raise click.ClickException(explain(error)) from error
        except click.ClickException as error:
            if not ctx.meta[FOR_PROGRAMS]:
                raise
            raise JsonError(error.format_message(), None, error.exit_code) from error


class JsonError(click.ClickException):
    """An error that is shown as a line of JSON with `error` and `hint`."""

    def __init__(self, message: str, hint: str | None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it, on standard error unless told."""
        line = msgspec.json.encode(printable({"error": self.message, "hint": self.hint})).decode()
        click.echo(line, file=file, err=file is None)


def explain(error: BlkdError) -> str:
    """The error for a person: what is wrong and, on a second line, what to do."""
    return f"{error}\nhint: {error.hint}" if error.hint else str(error)


@click.group(cls=Cli)
@click.version_option(__version__, prog_name="blkd")
def blkd() -> None:
    """Serve raw images and block devices to virtual machines as vhost-user-blk disks."""
