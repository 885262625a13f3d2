# SPDX-License-Identifier: Apache-2.0
"""What `vhost-user-blkd` does with its arguments."""

import argparse
import sys
from typing import NoReturn

from blkd.errors import BlkdError
from blkd.host import signals

FIRST_FD = 3  # 0, 1 and 2 keep their usual meaning


def run() -> NoReturn:
    """Serve as the arguments of this process say."""
    arguments = parser().parse_args()
    try:
        serve(arguments)
    except BlkdError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        sys.exit(f"vhost-user-blkd: {error}{hint}")
    signals.exit_now(0)


def parser() -> argparse.ArgumentParser:
    """The options that the conventions name; and one for what they leave open."""
    options = argparse.ArgumentParser(
        prog="vhost-user-blkd",
        description="Serve a raw image or a block device as a vhost-user-blk device.",
        allow_abbrev=False,
    )
    where = options.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket-path", metavar="PATH", help="listen on this UNIX socket")
    where.add_argument(
        "--fd", metavar="FDNUM", type=_inherited, help="use this socket, connected or listening"
    )
    where.add_argument(
        "--print-capabilities", action="store_true", help="print what it can do, as JSON"
    )
    options.add_argument("--blk-file", metavar="PATH", required=True, help="the image or device")
    options.add_argument("--read-only", action="store_true", help="never write to it")
    options.add_argument(
        "--format", choices=["raw"], help="serve it also if it looks like another format"
    )
    return options


def serve(arguments: argparse.Namespace) -> None:
    """Serve until the front end of a connected socket leaves, or a signal comes.

    Raises:
        BlkdError: it cannot start.
    """
    # Only now: wrong usage is refused without them.
    from blkd import hosting  # noqa: PLC0415
    from blkd.export.config import MAX_QUEUES, ExportConfig, name_of  # noqa: PLC0415
    from blkd.host import log  # noqa: PLC0415

    log.configure()
    config = ExportConfig(
        image=arguments.blk_file,
        image_format=arguments.format,
        socket=arguments.socket_path,
        name=name_of(arguments.blk_file),
        read_only=arguments.read_only,
        queues=MAX_QUEUES,  # the VMM chooses, which knows how many CPUs its guest has
    )
    hosting.run(config, lambda _state: None, arguments.fd)


def _inherited(text: str) -> int:
    fd = int(text)
    if fd < FIRST_FD:
        raise argparse.ArgumentTypeError(f"{fd} is no file descriptor for a socket")
    return fd
