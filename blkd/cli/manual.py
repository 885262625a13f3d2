# SPDX-License-Identifier: Apache-2.0
"""Makes the man pages from the commands: one of `blkd`, and one of each command.

python -m blkd.cli.manual DIRECTORY
"""

import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from blkd.cli.group import COMMANDS, blkd

LICENSE: Final = '.\\" SPDX-License-Identifier: Apache-2.0\n'
MADE: Final = '.\\" Made from the commands by python -m blkd.cli.manual.\n'
MAIN: Final = "blkd"
STATUS: Final = "0 after an orderly end, 1 if something was refused, 2 for wrong usage."
SERVING: Final = frozenset({"serve", "net", "vsock", "upgrade"})

Terms = Sequence[tuple[str, str]]
FILES: Final[Terms] = (
    ("/etc/blkd/blkd.toml", "The settings of blkd daemon: its directories and who may do what."),
    ("/run/blkd/blkd.sock", "Where the daemon of this host answers."),
)
ENVIRONMENT: Final[Terms] = (
    ("BLKD_SOCKET", "The socket of the daemon that commands ask, where --daemon names none."),
    ("BLKD_LOG", "debug logs every message of the protocol."),
)
SIGNALS: Final[Terms] = (
    (
        "SIGTERM, SIGINT",
        "Complete the requests in flight and end, within five seconds.  A second one ends at once.",
    ),
    ("SIGHUP", "Read the size of the image again and tell the guest."),
)
GENERAL: Final = """\
blkd serves raw images and block devices to virtual machines as disks, and devices for their network
and sockets, over the vhost-user protocol.  Virtual machine monitors (VMMs) may connect and leave.

blkd serve, blkd net and blkd vsock serve in the foreground until a signal ends them.  blkd daemon
keeps any number of exports, each in a process of its own, over crashes and reboots; the commands
that take a NAME ask it.  With --control PATH they ask a single process instead.

Every command takes --json for output that programs read, and --help for its options.  With --json
an error is a line of JSON on standard error: error and hint and, where a call of the API was
refused, the fields of its problem.

Sizes are written as 4096, 512M, 1.5G or 10GiB; units are powers of 1024."""


def pages() -> dict[str, str]:
    """Each page, by the name of its file."""
    context = click.Context(blkd, info_name=MAIN)
    made = {f"{MAIN}.1": _main_page()}
    for name, (_, summary) in COMMANDS.items():
        command = blkd.get_command(context, name)
        assert command is not None
        made[_file(name)] = _page(name, command, context, summary)
        for inner, each in command.commands.items() if isinstance(command, click.Group) else ():
            path = f"{name} {inner}"
            made[_file(path)] = _page(path, each, context, _short(each))
    return made


def _file(path: str) -> str:
    return f"{_page_name(path)}.1"


def _page_name(path: str) -> str:
    return f"{MAIN}-{path.replace(' ', '-')}"


def _short(command: click.Command) -> str:
    """The first sentence of a command's help."""
    return (command.help or "").partition(".")[0] + "."


def _main_page() -> str:
    commands = [(f"{_page_name(name)}(1)", text) for name, (_, text) in COMMANDS.items()]
    return "".join(
        [
            _title(MAIN, "Serve raw images and block devices to virtual machines."),
            _section("synopsis", ".B blkd\n.I COMMAND\n.RI [ options ]\n"),
            _section("description", _paragraphs(GENERAL)),
            _section("commands", _terms(commands)),
            _section("environment", _terms(ENVIRONMENT)),
            _section("files", _terms(FILES)),
            _section("exit status", _text(STATUS)),
            _section("see also", ".BR vhost\\-user\\-blkd (1),\n.BR qemu (1)\n"),
        ]
    )


def _page(path: str, command: click.Command, parent: click.Context, summary: str) -> str:
    context = click.Context(command, info_name=path, parent=parent)
    sections = [
        _title(_page_name(path), summary),
        _section("synopsis", _synopsis(path, command, context)),
        _section("description", _paragraphs(inspect.cleandoc(command.help or ""))),
    ]
    if isinstance(command, click.Group):
        inner = [
            (f"{_page_name(f'{path} {name}')}(1)", _short(each))
            for name, each in command.commands.items()
        ]
        sections.append(_section("commands", _terms(inner)))
    sections.append(_section("options", _terms(_options(command, context))))
    if path in SERVING:
        sections.append(_section("signals", _terms(SIGNALS)))
    sections.append(_section("exit status", _text(STATUS)))
    sections.append(_section("see also", ".BR blkd (1)\n"))
    return "".join(sections)


def _options(command: click.Command, context: click.Context) -> Terms:
    """Each option and what it is for."""
    records = (
        each.get_help_record(context)
        for each in command.get_params(context)
        if isinstance(each, click.Option)
    )
    return [record for record in records if record is not None]


def _title(name: str, summary: str) -> str:
    """The head of a page, and its NAME: the summary as man pages have it, in the middle."""
    said = summary[0].lower() + summary[1:].removesuffix(".")
    return (
        f"{LICENSE}{MADE}.TH {_escape(name.upper())} 1\n"
        f".SH NAME\n{_escape(name)} \\- {_escape(said)}\n"
    )


def _synopsis(path: str, command: click.Command, context: click.Context) -> str:
    pieces = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    lines = [f".B blkd {_escape(path)}\n", *(f".I {_escape(piece)}\n" for piece in pieces)]
    return "".join([*lines, ".RI [ options ]\n"])


def _section(name: str, content: str) -> str:
    return f".SH {name.upper()}\n{content}"


def _terms(items: Terms) -> str:
    return "".join(f".TP\n.B {_escape(term)}\n{_text(text)}" for term, text in items)


def _paragraphs(text: str) -> str:
    return ".PP\n".join(map(_text, text.strip().split("\n\n")))


def _text(text: str) -> str:
    """A paragraph with a sentence a line, as man pages are written."""
    sentences = re.split(r"(?<=[.])\s\s+", text.replace("\n", " "))
    return "".join(f"{_escape(sentence.strip())}\n" for sentence in sentences)


def _escape(text: str) -> str:
    """Text of which the formatter takes nothing for a request, a quote or a hyphen."""
    escaped = text.replace("\\", "\\\\").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def write(directory: Path) -> None:
    """Write every page into a directory, and remove those of commands that are no more."""
    made = pages()
    for old in directory.glob(f"{MAIN}*.1"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
