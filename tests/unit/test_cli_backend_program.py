# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = "from blkd.cli.backend_program import main; main()"


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([], id="alone"),
        pytest.param(["--no-such-option", "stray"], id="nonsense"),
        pytest.param(["--socket-path=/a", "--fd=3", "--blk-file=/none"], id="contradiction"),
        pytest.param(["--fd=x"], id="bad-number"),
    ],
)
def test_capabilities_are_printed_whatever_else_is_said(others):
    for arguments in (["--print-capabilities", *others], [*others, "--print-capabilities"]):
        done = program(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == {"type": "block", "features": ["read-only", "blk-file"]}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(["--blk-file=/a"], "--socket-path", id="no-socket"),
        pytest.param(["--socket-path=/a"], "--blk-file", id="no-image"),
        pytest.param(["--socket-path=/a", "--fd=3", "--blk-file=/a"], "not allowed", id="both"),
        pytest.param(["--fd=two", "--blk-file=/a"], "--fd", id="no-number"),
        pytest.param(["--fd=2", "--blk-file=/a"], "no file descriptor", id="standard-error"),
        pytest.param(["--fd=-1", "--blk-file=/a"], "--fd", id="negative"),
        pytest.param(["--socket=/a", "--blk-file=/a"], "--socket-path", id="abbreviated"),
        pytest.param(["--fd=3", "--blk-file=/a", "--daemonize"], "unrecognized", id="unknown"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, reason):
    done = program(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stdout == ""


def test_the_descriptor_for_libvirt_fits_the_program():
    descriptor = json.loads((ROOT / "packaging" / "vhost-user" / "50-blkd-blk.json").read_text())
    assert descriptor.keys() == {"description", "type", "binary"}
    assert descriptor["type"] == json.loads(program("--print-capabilities").stdout)["type"]
    assert Path(descriptor["binary"]).is_absolute()
    assert Path(descriptor["binary"]).name == "vhost-user-blkd"
