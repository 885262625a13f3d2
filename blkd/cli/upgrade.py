# SPDX-License-Identifier: Apache-2.0
"""`blkd upgrade`: a served disk goes on in this process, in the foreground."""

import asyncio
import contextlib
import functools
import socket

import click

from blkd.cli import serving
from blkd.cli.control import control_option, timeout
from blkd.cli.output import json_option, print_result
from blkd.control import client, models
from blkd.export.export import Export
from blkd.export.views import ExportState
from blkd.host import log, signals, unix_socket
from blkd.upgrade.sides import Inheritance


@click.command()
@control_option
@json_option
def upgrade(control: str, *, as_json: bool) -> None:
    """Take a served disk over from the process that serves it; the guest goes on.

    Runs in that one's place, with its settings, as blkd serve does.  If anything is amiss,
    that one serves on.
    """
    log.configure(json=as_json)
    limit = timeout()

    def announce(state: ExportState) -> None:
        print_result(state, title="serving", as_json=as_json)

    async def taken(
        stack: contextlib.AsyncExitStack, settled: asyncio.Event
    ) -> tuple[Export, socket.socket | None]:
        inheritance = Inheritance()
        switching = functools.partial(
            client.switch, control, models.UPGRADE, models.UPGRADE_PROTOCOL, limit=limit
        )
        with await asyncio.to_thread(switching) as sock:
            await inheritance.take_over(sock)
            settled.set()
            await inheritance.begin()
        export = inheritance.export
        stack.enter_context(inheritance.control)
        if export.config.control is not None:
            stack.callback(unix_socket.unlink_if_ours, export.config.control)
        return export, inheritance.control

    serving.host(taken, announce)
    signals.leave(0)
