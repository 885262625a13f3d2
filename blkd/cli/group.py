# SPDX-License-Identifier: Apache-2.0
"""The commands of `blkd`; the module of a command is imported when the command is used."""

import importlib

import click
from click.shell_completion import CompletionItem

from blkd import __version__
from blkd.cli.output import group_json_option
from blkd.cli.verbs import Verbs

COMMANDS = {  # name: (module, what the list of commands says)
    "serve": ("serve", "Serve an image to a virtual machine as a disk."),
    "net": ("serve_net", "Serve a TAP to a virtual machine as a network device."),
    "vsock": ("serve_vsock", "Give virtual machines sockets to the host and to each other."),
    "daemon": ("daemon", "Serve many exports, each by a process of its own."),
    "image": ("image", "Create an image, or describe images."),
    "add": ("add", "Have the daemon serve an image, from now on."),
    "add-net": ("add", "Have the daemon serve a TAP as a network device, from now on."),
    "add-vsock": ("add", "Have the daemon give virtual machines sockets, from now on."),
    "ls": ("daemon_verbs", "List the exports of the daemon."),
    "show": ("control", "Show the state of an export."),
    "stats": ("control", "Show how many requests an export has answered."),
    "inflight": ("control", "List the requests that an export is carrying out."),
    "top": ("top", "Show what all exports do, as it changes."),
    "iostat": ("iostat", "Print what exports do in the columns of iostat."),
    "dashboard": ("dashboard", "Print the address of the page that shows what exports do."),
    "set": ("add", "Change settings of an export."),
    "resize": ("control", "Change the size of a disk."),
    "limit": ("limit", "Show or change how much a disk may do in a second."),
    "pause": ("control", "Stop reading and writing until blkd resume."),
    "resume": ("control", "End a pause."),
    "retry": ("control", "Try requests again that failed and are held."),
    "stop": ("control", "End what is served once its requests have completed."),
    "start": ("daemon_verbs", "Serve an export that was stopped."),
    "kill": ("control", "End a process that serves without waiting for its requests."),
    "group": ("group_verbs", "Have exports share limits."),
    "rm": ("daemon_verbs", "Stop an export and forget it."),
    "upgrade": ("upgrade", "Continue disks in new processes of this version."),
    "events": ("daemon_verbs", "Print what has happened to the exports of the daemon."),
    "logs": ("daemon_verbs", "Print what an export has logged."),
    "connect": ("connect", "Print how to attach a served disk to a virtual machine."),
    "completion": ("completion", "Print a script by which a shell completes blkd's words."),
    "setup": ("setup", "Install units and man pages, where pip has installed blkd."),
    "bench": ("bench", "Measure how fast a served disk is."),
    "doctor": ("doctor", "Check whether this host can serve disks."),
}
VARIABLES = {"set": "set_"}
"""Of commands that cannot be called as Python has them: the variable in the module."""


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
        command: click.Command = getattr(module, VARIABLES.get(name, name.replace("-", "_")))
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The commands that begin so, without importing them; and the options of `blkd`."""
        commands = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Cli)
@click.version_option(__version__, prog_name="blkd")
@group_json_option
def blkd() -> None:
    """Serve raw images and block devices to virtual machines as vhost-user-blk disks."""
