# SPDX-License-Identifier: Apache-2.0
"""What a guest knows its disk by, from start to start and from process to process."""

import hashlib
import os

import pytest

from harness.daemon import Daemon, Taker, image, run
from harness.frontend import Feature, FrontEnd
from harness.relay import Relay
from harness.storage import loop_device

SIZE = 1 << 20
CONFIG_BYTES = 60
PHYSICAL_EXPONENT = 24  # where it stands in the configuration space


@pytest.fixture
def backings(tmp_path):
    return [image(tmp_path / f"backing-{n}", SIZE) for n in range(2)]


def point(link, target):
    """Have a symbolic link lead somewhere else."""
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link


def serial_of(path, directory):
    with Daemon(path, directory) as daemon:
        serial = daemon.ready()["serial"]
        with FrontEnd.connect(daemon.socket) as front_end:
            shown = front_end.disk().get_id()
        assert shown == (0, serial.encode().ljust(20, b"\0"))
        assert daemon.end() == 0
    return serial


def legacy_serial(path):
    """As version 0.1 made it, also of a device."""
    return f"blkd{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"


def test_a_device_keeps_its_serial_when_it_is_called_otherwise(backings, tmp_path):
    link = tmp_path / "by-id"
    with loop_device(backings[0]) as first:
        serial = serial_of(point(link, first), tmp_path)
        with loop_device(backings[1]) as second:  # as after a boot that finds them in another order
            assert serial_of(point(link, second), tmp_path) == serial
            assert serial_of(first, tmp_path) != serial_of(second, tmp_path)


def test_a_file_keeps_the_serial_that_it_always_had(backings, tmp_path):
    link = point(tmp_path / "link", backings[0])
    assert serial_of(link, tmp_path) == serial_of(backings[0], tmp_path)
    assert serial_of(backings[0], tmp_path) == legacy_serial(backings[0])


def test_an_upgrade_keeps_the_serial_whatever_the_path_leads_to(backings, tmp_path):
    link = point(tmp_path / "link", backings[0])
    with Daemon(link, tmp_path) as daemon:
        serial = daemon.ready()["serial"]
        with FrontEnd.connect(daemon.socket) as front_end:
            disk = front_end.disk()
            before = disk.get_id()
            point(link, backings[1])
            with Taker(daemon) as new:
                assert new.ready()["serial"] == serial
                assert disk.get_id() == before
                with Taker(new) as newest:
                    assert newest.ready()["serial"] == serial


def upgraded(daemon, tmp_path, hook):
    """The process that has taken a disk over in a conversation that a hook may change."""
    path = tmp_path / "relay.sock"
    with Relay(path, daemon.control, hook):
        new = Taker(daemon, path)
        new.ready()
    new.control = daemon.control
    assert daemon.end(None) == 0
    return new


def test_an_upgrade_keeps_what_the_guest_was_shown(backings, tmp_path):
    """As if the old process had found other limits on this host, or were another version."""
    features = Feature.DISCARD | Feature.WRITE_ZEROES

    def hook(message):
        if message.name == "offer":
            shown = message.content["device"]
            shown["features"] &= ~int(features)
            shown["physical_block_size"] = 16384
            for name in list(shown):
                if "discard" in name or "zeroes" in name:
                    shown[name] = type(shown[name])()

    with Daemon(backings[0], tmp_path) as daemon:
        offered = daemon.ready()["features"]
        with upgraded(daemon, tmp_path, hook) as new, Taker(new) as newest:
            state = newest.ready()
            assert new.end(None) == 0
            assert state["features"] == offered & ~features
            assert state["physical_block_size"] == 16384
            assert state["discard"] is False
            with FrontEnd.connect(newest.socket) as front_end:
                front_end.negotiate()
                config = front_end.config(0, CONFIG_BYTES)
            assert config[PHYSICAL_EXPONENT] == 5
            assert not any(config[36:])


def test_a_process_that_gets_no_device_shows_what_the_first_version_did(backings, tmp_path):
    """The old process is of a version that sends neither serial nor features."""

    def hook(message):
        if message.name == "offer":
            del message.content["device"]
            message.content["config"]["serial"] = None

    link, first = tmp_path / "by-id", ("--features-as", "0.1")
    with (
        loop_device(backings[0]) as device,
        Daemon(point(link, device), tmp_path, *first) as daemon,
    ):
        offered = daemon.ready()["features"]
        with upgraded(daemon, tmp_path, hook) as new:
            state = new.call("show")
            assert state["serial"] == legacy_serial(device)
            assert state["features"] == offered
            assert new.end() == 0


def test_a_process_of_the_first_version_is_sent_only_what_it_understands(backings, tmp_path):
    offers = []

    def hook(message):
        if message.name == "hello":
            del message.content["knows"]
        elif message.name == "offer":
            offers.append(message.content)

    options = ["--format", "raw", "--features-as", "0.1", "--socket-mode", "0600"]
    with Daemon(backings[0], tmp_path, *options) as daemon:
        serial = daemon.ready()["serial"]
        with upgraded(daemon, tmp_path, hook) as new:
            assert new.end() == 0
    assert "device" not in offers[0]
    config = offers[0]["config"]
    assert config["serial"] == serial
    assert config.keys() == {
        *("image", "socket", "control", "name", "serial", "read_only", "incoming"),
        *("queues", "queue_size", "logical_block_size", "cache", "discard", "max_discard_segments"),
        *("engine", "workers", "cpus", "poll_us", "register_memory"),
    }


def test_an_older_set_of_features_can_be_asked_for(backings, tmp_path):
    with Daemon(backings[0], tmp_path, "--features-as", "0.1") as daemon:
        offered = daemon.ready()["features"]
        assert offered & Feature.RING_PACKED
        assert not offered & Feature.ACCESS_PLATFORM
    refused = run("serve", backings[0], "--socket", tmp_path / "s", "--features-as", "9.9")
    assert refused.returncode == 2
    assert "0.1" in refused.stderr
