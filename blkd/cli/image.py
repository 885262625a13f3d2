# SPDX-License-Identifier: Apache-2.0
"""`blkd image`: images at rest."""

import asyncio

import click

from blkd.cli import size_arguments
from blkd.cli.output import group_json_option, json_option, print_result
from blkd.cli.verbs import Verbs
from blkd.image import store


@click.group(cls=Verbs)
@group_json_option
def image() -> None:
    """Create images and tell about them."""


@image.command()
@click.argument("path")
@click.argument("size", callback=size_arguments.positive)
@click.option("--preallocate", is_flag=True, help="Take the space now, not when it is written.")
@json_option
def create(path: str, size: int, *, preallocate: bool, as_json: bool) -> None:
    """Create a raw image of SIZE bytes (10G, 512M) at PATH, which must not exist."""
    asyncio.run(store.create(path, size, preallocate=preallocate))
    print_result(asyncio.run(store.info(path)), title="created", as_json=as_json)


@image.command()
@click.argument("path")
@json_option
def info(path: str, *, as_json: bool) -> None:
    """Tell what is known of the image or block device at PATH."""
    print_result(asyncio.run(store.info(path)), title="image", as_json=as_json)
