# SPDX-License-Identifier: Apache-2.0
"""`blkd upgrade`: exports go on in processes of the version that is installed by now."""

from typing import Any

import click

from blkd import hosting
from blkd.cli.output import json_option, print_result
from blkd.cli.target import ByName, control_path, daemon_option, name_argument
from blkd.cli.waiting import watch
from blkd.control.daemon_client import Daemon, Observe, export_path
from blkd.control.daemon_models import EXPORTS
from blkd.errors import BlkdError, ControlError
from blkd.host import log, signals

UPGRADED = frozenset({"serving", "held", "paused"})
"""The states of an export that has a process which can be replaced."""


@click.command()
@name_argument
@click.option("--all", "every", is_flag=True, help="Every disk of the daemon, one after the other.")
@control_path
@daemon_option
@json_option
def upgrade(
    daemon: Daemon, name: str | None, control: str | None, *, every: bool, as_json: bool
) -> None:
    """Go on with a disk in a new process of the version installed by now; its guest goes on.

    If anything is amiss, the process that has it serves on; --all then stops there.  With --control
    the new process is this one: it serves in the foreground, as blkd serve does.
    """
    if [name is not None, every, control is not None].count(True) != 1:
        raise click.UsageError("give the NAME of an export of the daemon, --all, or --control PATH")
    if control is not None:
        _take_over(control, daemon.limit, as_json=as_json)
    with watch(as_json=as_json) as observe:
        if name is not None:
            result = ByName(daemon, name, observe).act("upgrade")
            print_result(result, title="export", as_json=as_json)
        else:
            result, failure = _upgrade_all(daemon, observe)
            print_result(result, title="upgrade", as_json=as_json)
            if failure is not None:
                raise failure


def _take_over(control: str, limit: float, *, as_json: bool) -> None:
    log.configure(json=as_json)

    def announce(state: object) -> None:
        print_result(state, title="serving", as_json=as_json)

    hosting.take_over(control, limit, announce)
    signals.exit_now(0)


def _upgrade_all(daemon: Daemon, observe: Observe | None) -> tuple[Any, BlkdError | None]:
    """Upgrade disk after disk until one fails: what became of each, and the failure."""
    upgraded: list[dict[str, Any]] = []
    left: list[dict[str, str]] = []
    failure: BlkdError | None = None
    for export in daemon.get(EXPORTS)["exports"]:
        name = export["name"]
        reason = _reason_to_leave(export)
        if reason is None and failure is not None:
            reason = "an earlier one failed"
        if reason is None:
            try:
                view = daemon.call("POST", export_path(name, verb="upgrade"), observe=observe)
                upgraded.append({"name": name, "pid": view["pid"]})
                continue
            except ControlError as error:
                failure = ControlError(f"{name}: {error}", hint=error.hint)
                failure.status, failure.kind, failure.title = error.status, error.kind, error.title
                reason = str(error)
        left.append({"name": name, "reason": reason})
    return {"upgraded": upgraded, "left": left}, failure


def _reason_to_leave(export: dict[str, Any]) -> str | None:
    """Why an export is not upgraded; None if it can be."""
    if export["device"] != "blk":
        return "only a disk goes on in another process"
    if export["state"] not in UPGRADED:
        return f"it is {export['state']}"
    return None
