# SPDX-License-Identifier: Apache-2.0
"""Sizes on the command line."""

import click

from blkd.sizes import parse, show

__all__ = ["callback", "parse", "show"]


def callback(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """Parse a size on the command line; the message names the option by itself."""
    try:
        return parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
