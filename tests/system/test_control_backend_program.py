# SPDX-License-Identifier: Apache-2.0
import signal
import socket

import pytest

from harness.daemon import Process, image
from harness.frontend import FrontEnd

VIRTIO_BLK_F_RO = 1 << 5


@pytest.fixture
def disk(tmp_path):
    return image(tmp_path / "demo.img")


@pytest.fixture
def start(disk, tmp_path):
    """Starts `vhost-user-blkd` on the image."""

    def started(*options, **popen):
        command = ["vhost-user-blkd", f"--blk-file={disk}", *options]
        return Process(command, tmp_path / "log", **popen)

    return started


def test_it_serves_one_front_end_after_another_at_a_path(start, tmp_path):
    path = tmp_path / "a.sock"
    with start(f"--socket-path={path}") as program:
        for data in (b"a" * 512, b"b" * 512):
            with FrontEnd.connect(path) as front_end:
                disk = front_end.disk()
                assert disk.write(0, data) == 0
                assert disk.read(0, 512) == (0, data)
        assert program.end() == 0
    assert not path.exists()


def test_it_serves_one_front_end_after_another_on_an_inherited_listener(start, tmp_path):
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with start(f"--fd={listening.fileno()}", pass_fds=[listening.fileno()]) as program:
            for _ in range(2):
                with FrontEnd.connect(path) as front_end:
                    assert front_end.disk().read(0, 512)[0] == 0
            assert program.end() == 0
    assert path.exists()  # the parent's, not ours


def test_it_ends_with_the_connection_that_it_was_given(start):
    ours, theirs = socket.socketpair()
    with theirs, start(f"--fd={theirs.fileno()}", pass_fds=[theirs.fileno()]) as program:
        theirs.close()
        with FrontEnd.from_socket(ours) as front_end:
            assert front_end.disk().read(0, 512)[0] == 0
        assert program.end(None) == 0


def test_sigterm_ends_it_while_a_connection_lasts(start):
    ours, theirs = socket.socketpair()
    with (
        theirs,
        start(f"--fd={theirs.fileno()}", pass_fds=[theirs.fileno()]) as program,
        FrontEnd.from_socket(ours) as front_end,
    ):
        front_end.disk()
        assert program.end() == 0


def test_a_signal_before_its_first_line_ends_it_in_order(start, tmp_path):
    with start(f"--socket-path={tmp_path / 'a.sock'}", block=True) as program:
        assert program.end(signal.SIGTERM) == 0


def test_read_only_is_what_the_guest_sees(start, disk, tmp_path):
    disk.chmod(0o400)
    with (
        start(f"--socket-path={tmp_path / 'a.sock'}", "--read-only"),
        FrontEnd.connect(tmp_path / "a.sock") as front_end,
    ):
        assert front_end.negotiate() & VIRTIO_BLK_F_RO


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param(["--fd=9"], "file descriptor 9 is no socket", id="closed-fd"),
        pytest.param(["--socket-path=/nowhere/a.sock"], "/nowhere/a.sock", id="no-directory"),
        pytest.param(["--socket-path=a.sock", "--blk-file=/nowhere"], "/nowhere", id="no-image"),
    ],
)
def test_it_fails_early_if_it_cannot_serve(start, options, reason):
    with start(*options) as program:
        assert program.end(None) == 1
        assert reason in program.errors()
        assert program.errors().startswith("vhost-user-blkd: ")
