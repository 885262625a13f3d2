# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import errno

import pytest

from blkd.errors import DataPlaneError
from blkd.export.frontends import FrontEnds
from blkd.host import unix_socket
from harness.frontend import FrontEnd, Request
from tests.doubles import RecordingDataPath, ToyDevice

LIMIT = 10.0  # seconds for what takes milliseconds


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "no space"), DataPlaneError("odd"), KeyError("an error of ours")],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("where", ["set_call", "reset"])
async def test_whatever_fails_for_one_front_end_the_next_is_served(tmp_path, failure, where):
    path = tmp_path / "disk.sock"
    data_path = RecordingDataPath()
    with unix_socket.listen(str(path), 0o600) as sock:
        front_ends = FrontEnds("disk", sock, ToyDevice(), data_path)
        serving = asyncio.create_task(front_ends.serve())
        data_path.failures[where] = failure
        await asyncio.wait_for(asyncio.to_thread(meet, path), LIMIT)
        data_path.failures.clear()
        await asyncio.wait_for(asyncio.to_thread(converse, path), LIMIT)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


def meet(path):
    """Ask for what fails, and be dropped."""
    with FrontEnd.connect(path) as front_end:
        front_end.send(Request.SET_VRING_CALL, (0x100).to_bytes(8, "little"))
        with contextlib.suppress(BrokenPipeError):  # dropped already
            front_end.send(99)
        assert front_end.wait_closed()


def converse(path):
    with FrontEnd.connect(path) as front_end:
        front_end.negotiate()
        front_end.start_ring()
