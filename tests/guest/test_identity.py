# SPDX-License-Identifier: Apache-2.0
"""What a guest sees of its disk."""

import contextlib
import hashlib

import pytest

from harness.fio import fio
from harness.guest import CommandFailed, Disk
from harness.server import serve

PATTERN = bytes(range(256)) * 16
REFUSED = r"not permitted|[Pp]ermission denied|[Rr]ead-only"


async def test_the_guest_sees_the_serials_that_were_given_and_different_ones_otherwise(boot, image):
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(serve(image(f"disk{n}"), *options))
            for n, options in enumerate([(), (), ("--serial", "twenty-characters-ok")])
        ]
        guest = await stack.enter_async_context(boot(*(Disk(s.socket) for s in servers)))
        serials = [await guest.run(f"cat /sys/block/vd{disk}/serial") for disk in "abc"]
        assert serials == [server.announced["serial"] for server in servers]
        assert serials[2] == "twenty-characters-ok"
        assert len(set(serials)) == 3


async def test_a_read_only_disk_is_read_and_not_written(boot, image):
    path = image()
    path.write_bytes(PATTERN * 256)
    async with serve(path, "--read-only") as server, boot(Disk(server.socket)) as guest:
        assert await guest.run("cat /sys/block/vda/ro") == "1\n"
        assert await guest.sha256("vda") == hashlib.sha256(PATTERN * 256).hexdigest()
        with pytest.raises(CommandFailed, match=REFUSED):
            await guest.run("dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct")
    assert path.read_bytes() == PATTERN * 256


async def test_the_guest_may_send_as_much_as_was_offered(boot, image):
    async with (
        serve(image("small"), "--queue-size", 64) as small,
        serve(image("large"), "--queue-size", 1024) as large,
        boot(Disk(small.socket, queue_size=64), Disk(large.socket, queue_size=1024)) as guest,
    ):
        for name, queue_size in {"vda": 64, "vdb": 1024}.items():
            segments, size = (
                await guest.run(f"cd /sys/block/{name}/queue; cat max_segments max_segment_size")
            ).split()
            assert int(segments) == queue_size - 2
            assert int(size) >= 64 << 10
            # Pages of their own, so that each is a segment.
            await fio(guest, f"/dev/{name}", "--rw=write --bs=1280k --size=20M --iodepth=8")
