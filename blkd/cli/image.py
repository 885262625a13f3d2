# SPDX-License-Identifier: Apache-2.0
"""`blkd image`: images that need not be served."""

import asyncio

import click

from blkd.cli import size_arguments
from blkd.cli.output import group_json_option, json_option, print_result
from blkd.cli.target import daemon_option
from blkd.cli.verbs import Verbs
from blkd.control.daemon_client import Daemon
from blkd.control.daemon_models import IMAGES
from blkd.image import store


@click.group(cls=Verbs)
@group_json_option
def image() -> None:
    """Create an image, or describe images."""


@image.command()
@click.argument("path")
@click.argument("size", callback=size_arguments.positive)
@click.option(
    "--preallocate", is_flag=True, help="Take all of the space now, not as the guest writes."
)
@json_option
def create(path: str, size: int, *, preallocate: bool, as_json: bool) -> None:
    """Create a raw image of SIZE (10G, 512M) at PATH.

    An existing file is never overwritten.
    """
    asyncio.run(store.create(path, size, preallocate=preallocate))
    print_result(asyncio.run(store.info(path)), title="created", as_json=as_json)


@image.command()
@click.argument("path")
@json_option
def info(path: str, *, as_json: bool) -> None:
    """Describe the image or block device at PATH; it may be in use."""
    print_result(asyncio.run(store.info(path)), title="image", as_json=as_json)


@image.command()
@daemon_option
@json_option
def ls(daemon: Daemon, *, as_json: bool) -> None:
    """List the images in the directories of the daemon, and the exports that have them."""
    print_result(daemon.get(IMAGES), title="images", as_json=as_json)
