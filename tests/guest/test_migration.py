# SPDX-License-Identifier: Apache-2.0
"""A guest that was paused before it is migrated: its rings do not run, so no lock goes with it."""

from harness.guest import Disk
from harness.server import serve

WRITE = "dd if=/dev/urandom of=/dev/vda bs=1M count=4 oflag=direct && sync /dev/vda"


async def test_a_paused_guest_goes_on_once_the_source_s_blkd_has_ended(machine, image):
    path = image(size=8 << 20)
    async with (
        serve(path) as here,
        serve(path, "--incoming") as there,
        machine.boot(Disk(here.socket), cpus=1) as guest,
        machine.incoming(Disk(there.socket), cpus=1) as moved,
    ):
        await guest.run(WRITE)
        written = await guest.sha256("vda")
        await guest.qmp.execute("stop")
        await guest.migrate(moved)
        await guest.kill()
        assert (await here.call("show"))["image_locked"]
        assert not (await there.call("show"))["image_locked"]
        assert await here.stop() == 0
        await moved.take_over(guest)
        assert await moved.sha256("vda") == written
        await moved.run(WRITE)
        assert (await there.call("show"))["image_locked"]
        assert await moved.kernel_errors() == []
