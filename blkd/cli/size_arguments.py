# SPDX-License-Identifier: Apache-2.0
"""Sizes on the command line."""

import click

from blkd.host.sizes import parse, show

__all__ = ["callback", "parse", "positive", "show"]


def positive(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Like `callback`, of what cannot be nothing."""
    size = callback(ctx, param, value)
    if size == 0:
        raise click.BadParameter("a disk of 0 bytes is none")
    return size


def callback(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Parse a size on the command line; the message names the option by itself."""
    try:
        return parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
