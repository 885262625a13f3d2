# SPDX-License-Identifier: Apache-2.0
"""The wheel: built from the sdist without a network, installed without a compiler, used."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.frontend import OK, OUT

ROOT = Path(__file__).parents[2]
BUILD_LIMIT = 300.0  # seconds

pytestmark = pytest.mark.timeout(BUILD_LIMIT)


def run(*words, **options):
    return subprocess.run(words, check=True, text=True, timeout=BUILD_LIMIT, **options)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The programs of a wheel, in an environment that has nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    # Without a network: whoever builds has what pyproject.toml names, and nothing is fetched.
    place = f"WHEELS={folder}"
    run("unshare", "--net", "make", "wheel", f"VENV={sys.prefix}", place, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    python = Path(sys.base_prefix, "bin", "python3")
    run(python, "-m", "venv", folder / "venv")
    pip = folder / "venv" / "bin" / "pip"
    run(pip, "install", "--quiet", "--only-binary", ":all:", wheel, cwd=folder)
    return folder / "venv" / "bin"


def test_a_wheel_serves_a_disk(programs, serve, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.daemon.PROGRAMS", programs)
    path = tmp_path / "disk.img"
    run(programs / "blkd", "image", "create", path, "1M", cwd=tmp_path)
    daemon, front_end = serve(path)
    words = Path(f"/proc/{daemon.process.pid}/cmdline").read_text().split("\0")
    assert f"{programs}/blkd" in words
    disk, data = front_end.disk(), bytes(range(256)) * 2
    (done,) = disk.wait(disk.submit(OUT, 8, data))
    assert done.status == OK
    assert path.read_bytes()[8 * 512 : 9 * 512] == data


def test_a_wheel_brings_its_own_liburing_and_no_probes(programs):
    packages = next(programs.parent.glob("lib/python3*/site-packages"))
    ring = next((packages / "blkd").glob("ring.*.so"))
    maps = run("ldd", ring, stdout=subprocess.PIPE).stdout
    (line,) = [line for line in maps.splitlines() if "liburing" in line]
    assert str(packages) in line
    assert not list((packages / "blkd").glob("*probes*"))
    sections = run("readelf", "--sections", "--wide", ring, stdout=subprocess.PIPE).stdout
    assert ".dynsym" in sections
    assert ".symtab" not in sections
    assert ".debug_info" not in sections


def test_setup_installs_what_the_wheel_brings(programs, tmp_path):
    run(programs / "blkd", "setup", "--root", tmp_path, cwd=tmp_path)
    unit = (tmp_path / "etc" / "systemd" / "system" / "blkd.service").read_text()
    assert f"ExecStart={programs}/blkd daemon" in unit
    assert (tmp_path / "usr" / "local" / "share" / "man" / "man1" / "blkd-serve.1").exists()
    assert (tmp_path / "etc" / "blkd" / "blkd.toml").exists()
    (tmp_path / "blkd").symlink_to(programs / "blkd")
    run(tmp_path / "blkd", "setup", "--root", tmp_path, "--remove", cwd=tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["blkd"]
