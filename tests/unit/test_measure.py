# SPDX-License-Identifier: Apache-2.0
"""The size of an image on a file system that may hang."""

import os
import threading

import pytest

from blkd.image.measure import Measure


async def test_a_size_is_asked_for_again_after_no_thread_was_to_be_had(tmp_path, monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    asking = Measure(str(path), at_once=False)
    fd = os.open(path, os.O_RDONLY)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="new thread"):
            await asking.size(fd)
    assert await asking.size(fd) == 4096
    os.close(fd)
