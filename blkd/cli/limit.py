# SPDX-License-Identifier: Apache-2.0
"""`blkd limit`: how much a disk may do in a second, shown and changed while it is served."""

from typing import Any, Final

import click

from blkd.cli.output import json_option, print_result
from blkd.cli.target import Target, require_one, target_options
from blkd.errors import ConfigError
from blkd.export.limits import Limits, changed, parse, plain, words, write

NONE: Final = "none"
OF_GROUPS: Final = frozenset({"group", "weight"})


class Limited(click.Command):
    """A command whose arguments are limits, behind the name of an export or beside --control."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and take the first word for a name if it is no limit."""
        left = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            given = ctx.params["wanted"]
            named = ctx.params["control"] is None and given and "=" not in given[0]
            ctx.params["name"] = given[0] if named else None
            ctx.params["wanted"] = given[1:] if named else given
            require_one(ctx.params["name"], ctx.params["control"])
        return left


@click.command(cls=Limited)
@click.argument("wanted", nargs=-1, metavar="[NAME] [LIMIT=VALUE...]")
@target_options
@json_option
def limit(target: Target, wanted: tuple[str, ...], *, as_json: bool) -> None:
    """Show how much a disk may do in a second, or change that while its guest runs.

    LIMIT is iops, iops-read, iops-write, bps, bps-read or bps-write, burst- before each for what is
    allowed for a burst-length after a rest, or iops-size.  What is not named stays as it is; no
    VALUE lifts a limit, and none alone lifts all.  Of an export of the daemon, group and weight
    say with whom it shares limits.
    """
    present = parse(target.limits())
    if not wanted:
        result: Any = {"limit": write(present), "limits": plain(present)}
    else:
        result = target.change_limits(read_change(present, wanted))
    print_result(result, title="limits", as_json=as_json)


def read_change(present: Limits, wanted: tuple[str, ...]) -> dict[str, Any]:
    """The settings that words on the command line come to.  Raises click.UsageError."""
    base = Limits() if NONE in wanted else present
    try:
        given = words(word for word in wanted if word != NONE)
        settings: dict[str, Any] = {each: given.pop(each) for each in OF_GROUPS & given.keys()}
        if given or NONE in wanted:
            settings["limit"] = write(changed(base, given))
    except ConfigError as error:
        hint = f"; {error.hint}" if error.hint else ""
        raise click.UsageError(f"{error}{hint}") from error
    if weight := settings.get("weight"):
        if not weight.isdecimal():
            raise click.UsageError(f"a weight of {weight!r}; write a number, 1 or more")
        settings["weight"] = int(weight)
    return settings
