# SPDX-License-Identifier: Apache-2.0
"""The commands of `blkd`; the module of a command is imported when the command is used."""

import importlib

import click

from blkd import __version__
from blkd.cli.output import group_json_option
from blkd.cli.verbs import Verbs

COMMANDS = {  # name: (module, what the list of commands says)
    "serve": ("serve", "Serve an image to a virtual machine as a disk."),
    "net": ("serve_net", "Serve a TAP to a virtual machine as a network device."),
    "vsock": ("serve_vsock", "Give virtual machines sockets to the host and to each other."),
    "image": ("image", "Create an image, or describe one."),
    "show": ("control", "Show the state of a served disk."),
    "stats": ("control", "Show how many requests a served disk has answered."),
    "resize": ("control", "Change the size of a served disk."),
    "pause": ("control", "Stop reading and writing until blkd resume."),
    "resume": ("control", "End a pause."),
    "stop": ("control", "End a served disk once its requests have completed."),
    "kill": ("control", "End a served disk without waiting for its requests."),
    "upgrade": ("upgrade", "Continue a served disk in a new process of this version."),
    "connect": ("connect", "Print how to attach a served disk to a virtual machine."),
    "bench": ("bench", "Measure how fast a served disk is."),
    "doctor": ("doctor", "Check whether this host can serve disks."),
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
