# SPDX-License-Identifier: Apache-2.0
"""The commands of `blkd`; each one's module is imported when it is used."""

import importlib

import click

from blkd import __version__
from blkd.cli.output import group_json_option
from blkd.cli.verbs import Verbs

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


class Cli(Verbs):
    """`blkd` itself, which imports a command's module when the command is used."""

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


@click.group(cls=Cli)
@click.version_option(__version__, prog_name="blkd")
@group_json_option
def blkd() -> None:
    """Serve raw images and block devices to virtual machines as vhost-user-blk disks."""
