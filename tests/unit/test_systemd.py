# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

from blkd.host import systemd


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """The manager's end of the notification socket."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            sock.bind(address)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
        else:
            sock.bind("\0" + address)
            monkeypatch.setenv("NOTIFY_SOCKET", "@" + address)
        sock.settimeout(5)
        yield sock


def test_the_manager_hears_that_the_service_is_ready(manager):
    systemd.ready("serving a disk")
    assert manager.recv(4096) == b"READY=1\nSTATUS=serving a disk"


def test_the_manager_hears_of_a_reload_with_its_time(manager):
    systemd.reloading()
    first, second = manager.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    assert int(second.removeprefix(b"MONOTONIC_USEC=")) > 0


def test_the_manager_hears_of_the_end(manager):
    systemd.stopping()
    assert manager.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/to/be/found", "vsock:2:1"])
def test_a_manager_that_cannot_be_reached_is_no_error(address, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.ready("serving")
