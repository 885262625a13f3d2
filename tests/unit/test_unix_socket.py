# SPDX-License-Identifier: Apache-2.0
import asyncio
import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from blkd.errors import SocketError
from blkd.host import unix_socket

LISTENER = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print(flush=True)
sys.stdin.read()
"""


def connected(path):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
    return True


@pytest.fixture
def dead(tmp_path):
    """A socket file whose process is gone."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "dead.sock"))
    return tmp_path / "dead.sock"


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=["lax", "strict"])
def test_the_file_has_the_mode_asked_for_whatever_the_umask(tmp_path, umask):
    path = tmp_path / "a.sock"
    before = os.umask(umask)
    try:
        with unix_socket.listen(str(path), 0o660) as sock:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert not sock.getblocking()
            assert connected(path)
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to any group")
def test_the_file_belongs_to_the_group_and_before_that_to_the_owner_only(tmp_path, monkeypatch):
    path, seen, chown = tmp_path / "a.sock", [], os.chown

    def watched(*arguments, **options):
        seen.append(stat.S_IMODE(path.stat().st_mode))
        chown(*arguments, **options)

    monkeypatch.setattr(os, "chown", watched)
    with unix_socket.listen(str(path), 0o666, 12345):
        status = path.stat()
        assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 0o666)
    assert seen == [0o600]


def test_a_group_is_given_by_name_or_number():
    assert unix_socket.group_number(None) is None
    assert unix_socket.group_number("12345") == 12345
    assert unix_socket.group_number("root") == 0
    with pytest.raises(SocketError, match="no-such-group"):
        unix_socket.group_number("no-such-group")


def test_a_group_that_there_cannot_be_leaves_nothing(tmp_path):
    with pytest.raises(SocketError, match="group"):
        unix_socket.listen(str(tmp_path / "a.sock"), 0o660, 1 << 40)
    assert not list(tmp_path.iterdir())


def test_a_dead_socket_is_replaced(dead):
    with unix_socket.listen(str(dead), 0o600):
        assert connected(dead)


def test_a_living_socket_is_refused_and_named(tmp_path):
    path = str(tmp_path / "a.sock")
    with unix_socket.listen(path, 0o600):
        with pytest.raises(SocketError, match=rf"in use by process {os.getpid()} \(") as refused:
            unix_socket.listen(path, 0o600)
        assert refused.value.hint
        assert connected(path)


def test_a_socket_of_another_type_is_living_too(tmp_path):
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(SocketError, match="in use by another process"):
            unix_socket.listen(str(path), 0o600)
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_never_removed(tmp_path, kind):
    path = tmp_path / "a.sock"
    match kind:
        case "file":
            path.touch()
        case "directory":
            path.mkdir()
        case "symlink":
            path.symlink_to("nowhere")
    with pytest.raises(SocketError, match="not a socket"):
        unix_socket.listen(str(path), 0o600)
    assert path.is_symlink() or path.exists()


def test_the_longest_path_works_and_one_more_byte_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with unix_socket.listen("x" * 107, 0o600):
        assert connected("x" * 107)
    with pytest.raises(SocketError, match="has 108 bytes") as refused:
        unix_socket.listen("x" * 108, 0o600)
    assert refused.value.hint


def test_the_length_is_counted_in_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SocketError, match="has 108 bytes"):
        unix_socket.listen("é" * 54, 0o600)


@pytest.mark.parametrize("path", ["", "\0abstract"], ids=["empty", "abstract"])
def test_what_names_no_file_is_refused(path):
    with pytest.raises(SocketError, match="no path"):
        unix_socket.listen(path, 0o600)


def test_a_missing_directory_is_reported(tmp_path):
    with pytest.raises(SocketError, match="No such file or directory"):
        unix_socket.listen(str(tmp_path / "none" / "a.sock"), 0o600)


def test_our_socket_file_is_removed(tmp_path):
    path = tmp_path / "a.sock"
    with unix_socket.listen(str(path), 0o600):
        unix_socket.unlink_if_ours(str(path))
    assert not path.exists()


def test_the_socket_file_of_somebody_else_stays(tmp_path):
    path = tmp_path / "a.sock"
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            LISTENER,
            path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        other.stdout.readline()
        unix_socket.unlink_if_ours(str(path))
        assert path.exists()
        other.stdin.close()


def test_nothing_to_remove_is_no_error(tmp_path, dead):
    unix_socket.unlink_if_ours(str(tmp_path / "none"))
    unix_socket.unlink_if_ours(str(dead))
    assert dead.exists()


def test_an_inherited_listening_socket_is_adopted(tmp_path):
    with socket.socket(socket.AF_UNIX) as parent:
        parent.bind(str(tmp_path / "a.sock"))
        parent.listen()
        with unix_socket.adopt(os.dup(parent.fileno())) as sock:
            assert unix_socket.is_listening(sock)
            assert not sock.getblocking()
            assert not sock.get_inheritable()


def test_an_inherited_connected_socket_is_adopted():
    ours, theirs = socket.socketpair()
    with ours, unix_socket.adopt(theirs.detach()) as sock:
        assert not unix_socket.is_listening(sock)
        sock.send(b"x")
        assert ours.recv(1) == b"x"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda: socket.socket(socket.AF_UNIX), "neither listening", id="idle"),
        pytest.param(lambda: socket.socket(socket.AF_INET), "not a UNIX stream", id="internet"),
        pytest.param(
            lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "not a UNIX", id="datagram"
        ),
        pytest.param(Path(os.devnull).open, "is no socket", id="file"),
    ],
)
def test_an_unfit_descriptor_is_refused_and_left_open(make, reason):
    with make() as given:
        with pytest.raises(SocketError, match=reason):
            unix_socket.adopt(given.fileno())
        os.fstat(given.fileno())


def test_a_closed_descriptor_is_refused():
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(SocketError, match=f"file descriptor {fd} is no socket"):
        unix_socket.adopt(fd)


STARTER = """
import asyncio, sys
from blkd import errors
from blkd.host import unix_socket
print(flush=True)
for line in sys.stdin:
    path = line.rstrip()
    try:
        sock = asyncio.run(unix_socket.listen_soon(path, 0o600))
    except errors.SocketError as error:
        print(0, error, flush=True)
        sock = None
    else:
        print(1, flush=True)
    sys.stdin.readline()
    if sock:
        sock.close()
"""
STARTS = 40
AT_ONCE = 3


def test_of_many_that_find_a_dead_socket_at_once_one_listens(tmp_path):
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(AT_ONCE)
    ]
    try:
        for starter in starters:
            starter.stdout.readline()
        for turn in range(STARTS):
            path = tmp_path / f"{turn}.sock"
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
            for starter in starters:
                starter.stdin.write(f"{path}\n")
            said = [starter.stdout.readline() for starter in starters]
            assert sum(line.startswith("1") for line in said) == 1, said
            assert connected(path)
            for starter in starters:
                starter.stdin.write("\n")
    finally:
        for starter in starters:
            starter.kill()
            starter.communicate()


async def test_a_socket_that_another_process_is_about_to_listen_at_is_not_replaced(tmp_path):
    path = tmp_path / "a.sock"
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))  # nobody answers there, yet
        starting = asyncio.create_task(unix_socket.listen_soon(str(path), 0o600))
        await asyncio.wait([starting], timeout=3 * unix_socket.LINGER_PERIOD)
        other.listen()
        os.close(fd)
        with pytest.raises(SocketError, match="in use by process"):
            await starting
        assert connected(path)


async def test_whoever_keeps_a_directory_locked_keeps_nobody_from_listening(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with await unix_socket.listen_soon(str(tmp_path / "a.sock"), 0o600):
        assert connected(tmp_path / "a.sock")
    os.close(fd)


def test_a_path_that_this_process_listens_at_is_refused_with_a_hint(tmp_path):
    path = str(tmp_path / "a.sock")
    with unix_socket.listen(path, 0o600):
        for other in (path, f"{tmp_path}/./a.sock"):
            with pytest.raises(SocketError, match="is in use by process") as refused:
                unix_socket.listen(other, 0o600)
            assert "--control" in refused.value.hint
        os.link(path, tmp_path / "b.sock")
        with pytest.raises(SocketError, match="is in use by process"):
            unix_socket.listen(str(tmp_path / "b.sock"), 0o600)
