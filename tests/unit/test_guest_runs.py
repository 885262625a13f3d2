# SPDX-License-Identifier: Apache-2.0
"""Which failures beside a guest are QEMU's own, so that the test is run once more."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST = """
import pathlib
def test_it(request):
    runs = pathlib.Path(request.path).with_name("runs")
    with runs.open("a") as file:
        file.write("x")
    if len(runs.read_text()) <= {failures}:
        error = RuntimeError("no guest")
        error.add_note({note!r})
        raise error
"""
DIES = "qemu-system-x86_64: hw/pci/msix.c:228: msix_table_mmio_write: Assertion `addr' failed."
STANDS = "rcu: rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies!"


@pytest.mark.parametrize(
    ("note", "failures", "passes", "runs"),
    [
        pytest.param(DIES, 1, True, 2, id="dies"),
        pytest.param(STANDS, 1, True, 2, id="stands-still"),
        pytest.param(STANDS, 2, False, 2, id="both-times"),
        pytest.param("hw/virtio/vhost.c:1: f: Assertion `x' failed.", 1, False, 1, id="another"),
    ],
)
def test_only_what_is_qemu_s_own_is_run_again(tmp_path, note, failures, passes, runs):
    path = tmp_path / "test_it.py"
    path.write_text(TEST.format(failures=failures, note=note))
    words = ["-p", "tests.guest.conftest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "/dev/null", *words, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == passes, done.stdout
    assert len((tmp_path / "runs").read_text()) == runs
    assert bool(re.search("once more: ", done.stdout)) == (runs > 1)
    assert note in done.stdout, "why the first failed is told"
