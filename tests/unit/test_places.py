# SPDX-License-Identifier: Apache-2.0
"""The ways out of the directories in which a caller may name images."""

import os
import socket

import pytest

from blkd.daemon.places import open_directory_of, open_place
from blkd.errors import ImageError
from harness.storage import loop_device


@pytest.fixture
def place(tmp_path):
    (images := tmp_path / "images").mkdir()
    (images / "web.img").touch()
    (images / "inner").mkdir()
    (images / "inner" / "db.img").touch()
    (tmp_path / "secret").touch()
    (tmp_path / "images-of-others").mkdir()
    (tmp_path / "images-of-others" / "x.img").touch()
    return images


def found(path, *directories, devices=()):
    fd = open_place(str(path), list(map(str, directories)), devices)
    try:
        return os.path.realpath(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["web.img", "inner/db.img", "inner/../web.img", "./web.img"])
def test_what_lies_beneath_is_opened(place, name):
    assert found(f"{place}/{name}", place) == os.path.realpath(place / name)


def test_a_link_that_stays_beneath_is_followed(place):
    (place / "link").symlink_to("inner/db.img")
    assert found(place / "link", place).endswith("/inner/db.img")


def test_a_directory_may_itself_be_a_link(place, tmp_path):
    (tmp_path / "alias").symlink_to(place)
    assert found(tmp_path / "alias" / "web.img", tmp_path / "alias").endswith("/web.img")
    assert found(place / "web.img", tmp_path / "alias").endswith("/web.img")


def test_the_second_directory_counts_too(place, tmp_path):
    others = tmp_path / "images-of-others"
    assert found(others / "x.img", place, others) == str(others / "x.img")


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("../secret", id="dots"),
        pytest.param("inner/../../secret", id="dots-behind"),
        pytest.param("../images/../secret", id="out-and-in"),
        pytest.param("../images-of-others/x.img", id="same-beginning"),
        pytest.param("to-secret", id="link"),
        pytest.param("to-secret-by-path", id="absolute-link"),
        pytest.param("to-root/etc/passwd", id="link-to-root"),
        pytest.param("to-parent/secret", id="link-to-parent"),
        pytest.param("to-proc", id="magic-link"),
        pytest.param("to-self/fd/{fd}", id="magic-link-by-proc"),
        pytest.param("inner", id="directory"),
        pytest.param("pipe", id="pipe"),
        pytest.param("sock", id="socket"),
        pytest.param("", id="the-directory-itself"),
        pytest.param("missing", id="missing"),
        pytest.param("web.img/", id="file-as-directory"),
    ],
)
def test_a_way_out_is_refused(place, tmp_path, monkeypatch, way):
    (place / "to-secret").symlink_to("../secret")
    (place / "to-secret-by-path").symlink_to(tmp_path / "secret")
    (place / "to-root").symlink_to("/")
    (place / "to-parent").symlink_to("..")
    (place / "to-self").symlink_to("/proc/self")
    os.mkfifo(place / "pipe")
    monkeypatch.chdir(place)
    with socket.socket(socket.AF_UNIX) as sock, (tmp_path / "secret").open() as secret:
        sock.bind("sock")
        (place / "to-proc").symlink_to(f"/proc/self/fd/{secret.fileno()}")
        with pytest.raises(ImageError):
            found(f"{place}/{way.format(fd=secret.fileno())}", place)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "web.img", "", "/", "/proc/self/exe", "/proc/self/fd/0", "/proc/1/root"]
)
def test_a_path_elsewhere_is_refused(place, path):
    with pytest.raises(ImageError, match="lies in none"):
        found(path, place, devices=["/dev/vda", "/dev/mapper/*"])


def test_a_link_of_proc_within_a_configured_directory_is_refused(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(ImageError, match="leads out"):
        found(f"/proc/self/fd/{file.fileno()}", "/proc/self/fd")


def test_a_file_where_a_device_is_named_is_refused(place):
    with pytest.raises(ImageError, match="is no block device"):
        found(place / "web.img", devices=[f"{place}/*.img"])


def test_a_named_device_is_opened_and_no_other(tmp_path):
    (backing := tmp_path / "backing").touch()
    os.truncate(backing, 1 << 20)
    with loop_device(backing) as device:
        assert found(device, devices=["/dev/loop*"]) == str(device)
        with pytest.raises(ImageError, match="lies in none"):
            found(device, devices=["/dev/sd*", "/dev/loop", "/*/*/*"])
        with pytest.raises(ImageError, match="is no regular file"):
            found(device, "/dev")


def test_a_new_file_has_its_directory_and_name(place):
    fd, name = open_directory_of(f"{place}/inner/new.img", [str(place)])
    try:
        assert (os.path.realpath(f"/proc/self/fd/{fd}"), name) == (f"{place}/inner", "new.img")
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["../new", "inner/..", "inner/", "web.img/x", "out/new", "no/new"])
def test_a_new_file_elsewhere_is_refused(place, name):
    (place / "out").symlink_to("..")
    with pytest.raises(ImageError):
        open_directory_of(f"{place}/{name}", [str(place)])
