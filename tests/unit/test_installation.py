# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from blkd.cli.completion import SHELLS
from blkd.daemon.daemon_config import SYSTEM, read_config
from blkd.installation import COMPLETION, Done, install, installed_files, remove, source

PROGRAMS = Path("/opt/blkd/bin")
UNIT = Path("/etc/systemd/system/blkd.service")
SETTINGS = Path("/etc/blkd/blkd.toml")


@pytest.fixture
def files():
    completion = {shell: f"completes {shell}" for shell in SHELLS}
    return list(installed_files(source(), Path("/usr/local"), PROGRAMS, completion))


def test_every_file_that_is_packaged_is_installed(files):
    packaged = {path.name for path in source().rglob("*") if path.is_file()} - {"install-packages"}
    by_shell = {Path(place).name for place in COMPLETION.values()}
    assert {file.path.name for file in files} == packaged | by_shell


def test_units_name_the_programs_that_were_installed(files, tmp_path):
    assert {done for _, done in install(files, tmp_path)} == {Done.INSTALLED}
    unit = (tmp_path / UNIT.relative_to("/")).read_text()
    assert f"ExecStart={PROGRAMS}/blkd daemon" in unit
    assert "/usr/bin/" not in unit


def test_settings_stay_as_the_operator_has_them_and_all_else_is_renewed(files, tmp_path):
    list(install(files, tmp_path))
    for path in UNIT, SETTINGS:
        (tmp_path / path.relative_to("/")).write_text("changed")
    done = dict(install(files, tmp_path))
    assert (done.pop(UNIT), done.pop(SETTINGS)) == (Done.REPLACED, Done.KEPT)
    assert set(done.values()) == {Done.UNCHANGED}
    assert (tmp_path / SETTINGS.relative_to("/")).read_text() == "changed"


def test_what_was_changed_is_not_removed(files, tmp_path):
    list(install(files, tmp_path))
    (tmp_path / UNIT.relative_to("/")).write_text("changed")
    (tmp_path / SETTINGS.relative_to("/")).unlink()
    done = dict(remove(files, tmp_path))
    assert (done.pop(UNIT), done.pop(SETTINGS)) == (Done.KEPT, Done.ABSENT)
    assert set(done.values()) == {Done.REMOVED}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [UNIT.name]


def test_the_settings_that_are_installed_are_understood_and_list_what_there_is():
    text = (source() / "config" / "blkd.toml").read_text()
    found = read_config(text.encode(), "blkd.toml", SYSTEM)
    assert (found.socket_group, found.read_group, found.change_group) == ("kvm", "blkd", None)
    in_force = "\n".join(line.removeprefix("# ") for line in text.splitlines() if " = " in line)
    everything = read_config(in_force.encode(), "blkd.toml", SYSTEM)
    assert (everything.images, everything.run, everything.on_stop) == (
        (SYSTEM.images,),
        SYSTEM.run,
        "keep",
    )
    for name in everything.__struct_fields__:
        assert name.replace("_", "-") in text or name in {"sandbox", "user"}
