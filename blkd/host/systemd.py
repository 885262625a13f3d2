# SPDX-License-Identifier: Apache-2.0
"""Notifications of a service to systemd (sd_notify(3)); none where systemd does not run it."""

import contextlib
import os
import socket
import time


def ready(status: str) -> None:
    """The service does its work from now on."""
    _notify("READY=1", f"STATUS={status}")


def reloading() -> None:
    """A reload has begun (Type=notify-reload); `ready` ends it."""
    _notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The service has begun to end."""
    _notify("STOPPING=1")


def main_pid(pid: int) -> None:
    """Process `pid` is the service from now on."""
    _notify(f"MAINPID={pid}")


def _notify(*lines: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # a service must run without its manager
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        sock.sendto("\n".join(lines).encode(), address)
