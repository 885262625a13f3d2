# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from blkd.cli.group import COMMANDS, blkd
from blkd.image import store

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return CliRunner().invoke(blkd, arguments)


def test_every_command_is_listed_and_tells_about_itself():
    listed = run("--help").output
    for name in COMMANDS:
        assert f"  {name} " in listed
        assert run(name, "--help").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["no-such-command"], id="command"),
        pytest.param(["show"], id="no-control"),
        pytest.param(["resize", "ten", "--control", "/a"], id="size"),
        pytest.param(["pause", "--deadline", "-1", "--control", "/a"], id="deadline"),
        pytest.param(["serve", "a.img"], id="no-socket"),
        pytest.param(["serve", "a.img", "--socket", "s", "--queues", "0"], id="queues"),
        pytest.param(["serve", "a.img", "--socket", "s", "--queues", "65"], id="many-queues"),
        pytest.param(["serve", "a.img", "--socket", "s", "--queue-size", "100"], id="no-power"),
        pytest.param(["serve", "a.img", "--socket", "s", "--queue-size", "2048"], id="long-queue"),
        pytest.param(["serve", "a.img", "--socket", "s", "--serial", "x" * 21], id="serial"),
        pytest.param(["serve", "a.img", "--socket", "s", "--cache", "unsafe"], id="cache"),
        pytest.param(["serve", "a.img", "--socket", "s", "--logical-block-size", "1024"], id="lbs"),
        pytest.param(["serve", "a.img", "--socket", "s", "--max-discard-seg", "0"], id="segments"),
        pytest.param(["connect", "--socket", "s", "--vmm", "bhyve"], id="vmm"),
        pytest.param(["image", "create", "a.img", "1Z"], id="image-size"),
        pytest.param(["image", "create", "a.img", "0"], id="empty-image"),
        pytest.param(["resize", "0", "--control", "/a"], id="empty-disk"),
        pytest.param(["serve", "a", "--socket", "s", "--control", "./s"], id="one-socket"),
        pytest.param(["serve", "a", "--socket", "s", "--serial", "\xe4"], id="no-ascii"),
    ],
)
def test_wrong_usage_ends_with_2(arguments):
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(["show", "--control", "/nowhere"], "nobody answers at /nowhere", id="show"),
        pytest.param(["image", "info", "/nowhere"], "/nowhere", id="info"),
        pytest.param(["connect", "--socket", "a,b", "--vmm", "crosvm"], "comma", id="connect"),
    ],
)
def test_a_refusal_is_one_line_and_a_hint_and_ends_with_1(arguments, reason):
    done = run(*arguments)
    assert done.exit_code == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("Error: ")
    assert reason in error
    assert hint.startswith("hint: ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["resize", "0", "--control", "/a"], "0 bytes"),
        (["serve", "a", "--socket", "/x/s", "--control", "/x/./s"], "--socket and --control"),
        (["serve", "a", "--socket", "s", "--serial", "x" * 21], "has 21 characters"),
        (["resize", "1GB", "--control", "/a"], "1GiB"),
    ],
)
def test_wrong_usage_is_explained(arguments, reason):
    assert reason in run(*arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "status", "reason", "hint"),
    [
        (["show", "--control", "/nowhere"], 1, "nobody answers", "blkd serve --control"),
        (["image", "info", "/nowhere"], 1, "/nowhere: cannot be opened", "image create"),
        (["show"], 2, "--control", None),
        (["resize", "ten", "--control", "/a"], 2, "'ten' is no size", None),
        (["no-such-command"], 2, "no-such-command", None),
    ],
)
def test_errors_are_json_if_asked(arguments, status, reason, hint):
    done = run(*arguments, "--json")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    shown = json.loads(done.stderr)
    assert shown.keys() == {"error", "hint"}
    assert reason in shown["error"]
    assert hint is None or hint in shown["hint"]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--json"], id="no-command"),
        pytest.param(["--json", "image"], id="no-command-of-a-group"),
        pytest.param(["image", "--json"], id="no-command-after-a-group"),
        pytest.param(["--json", "--nonsense"], id="option"),
        pytest.param(["--json", "nonsense"], id="command"),
        pytest.param(["--json", "show"], id="no-control"),
        pytest.param(["show", "--json", "--nonsense"], id="option-of-a-command"),
        pytest.param(["image", "info", "--json"], id="no-argument"),
    ],
)
def test_wrong_usage_is_json_wherever_the_option_stands(arguments):
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert json.loads(done.stderr)["error"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_wrong_usage_as_json(name):
    done = run(name, "--json", "--nonsense")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--nonsense" in json.loads(done.stderr)["error"]


def test_json_before_a_command_is_json_of_the_command(tmp_path):
    path = str(tmp_path / "a.img")
    shown = json.loads(run("--json", "image", "create", path, "1M").stdout)
    assert shown == json.loads(run("image", "--json", "info", path).stdout)


def test_a_file_may_be_called_like_the_option():
    assert run("image", "info", "--", "--json").stderr.startswith("Error: --json: cannot be opened")


def test_an_interrupted_command_says_so_in_json(monkeypatch):
    def interrupted(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "info", interrupted)
    done = run("image", "info", "/nowhere", "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert json.loads(done.stderr) == {"error": "interrupted", "hint": None}


def test_an_image_is_created_and_shown(tmp_path):
    path = str(tmp_path / "a.img")
    created = run("image", "create", path, "1.5M", "--json")
    assert created.exit_code == 0, created.output
    shown = json.loads(run("image", "info", path, "--json").output)
    assert shown == json.loads(created.output)
    assert shown["size"] == 3 << 19
    assert "1.5 MiB" in run("image", "info", path).output


def test_an_image_that_exists_is_not_overwritten(tmp_path):
    path = tmp_path / "a.img"
    path.write_bytes(b"precious")
    assert run("image", "create", str(path), "1M").exit_code == 1
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("vmm", ["qemu", "libvirt", "cloud-hypervisor", "firecracker", "crosvm"])
def test_a_recipe_has_the_absolute_path(vmm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = json.loads(run("connect", "--socket", "d.sock", "--vmm", vmm, "--json").output)
    assert shown["vmm"] == vmm
    assert str(tmp_path / "d.sock") in shown["text"]


def test_only_the_recipe_goes_to_standard_output():
    done = run("connect", "--socket", "/d.sock", "--vmm", "libvirt")
    assert done.stdout.startswith("<memoryBacking>")
    assert "#" not in done.stdout
    assert done.stderr.startswith("# ")


SERVING = """
import sys
from blkd.host import lean
lean.import_structlog()
import blkd.cli.backend, blkd.cli.serve, blkd.control.server
print(*sys.modules)
"""


def test_a_serving_process_loads_nothing_large_that_it_does_not_need():
    done = subprocess.run(
        [sys.executable, "-c", SERVING], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "blkd.control.http" in loaded
    assert not loaded & {"aiohttp", "email", "http.client", "multiprocessing", "pygments", "rich"}
