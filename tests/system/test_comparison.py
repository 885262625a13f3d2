# SPDX-License-Identifier: Apache-2.0
"""The comparison itself: a run of a second, and what comes of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from compare.cases import Backing
from compare.images import CHECKOUT, images
from compare.report import document
from compare.results import load


@pytest.mark.timeout(60)
def test_two_cases_are_measured_and_reported(tmp_path):
    data = tmp_path / "smoke.json"
    subprocess.run(
        [sys.executable, "-m", "compare.run", "--plan", "smoke", "--output", data],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    )
    run = load(data)
    assert run.failures == []
    assert [(s.subject, s.round) for s in run.samples] == [("blkd", 1)] * 2
    assert all(s.ios and s.cpu_us for s in run.samples)
    assert "**tmpfs: randread 4 KiB, QD1**" in document(run, "smoke.json", {})


def test_images_are_written_and_go_when_they_are_done_with():
    with images(set(Backing), 2 << 20) as names:
        paths = [Path(names[kind]) for kind in (Backing.TMPFS, Backing.EXT4)]
        for path in paths:
            assert path.stat().st_size == 2 << 20
            assert path.stat().st_blocks * 512 >= 2 << 20
            assert b"\0" * 4096 not in path.read_bytes()
        assert names[Backing.NULL] == "null:2097152"
    assert not any(path.parent.exists() for path in paths)
