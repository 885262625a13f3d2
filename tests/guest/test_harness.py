# SPDX-License-Identifier: Apache-2.0
"""The guest itself, without a disk: what the other tests rely on."""

import asyncio

import pytest

from harness.agent import Answer, GuestError
from harness.guest import CommandFailed


async def test_every_script_gets_its_own_answer(boot):
    async with boot() as guest:
        sums = await asyncio.gather(*(guest.run(f"seq {n}00 | wc -l") for n in range(1, 9)))
        assert [int(lines) for lines in sums] == [n * 100 for n in range(1, 9)]

        with pytest.raises(CommandFailed) as failed:
            await guest.run("echo 'two words'; echo ready no >&2; exit 3")
        assert failed.value.answer == Answer(3, "two words\n", "ready no\n")

        assert len(await guest.run("head -c 3000000 /dev/zero | tr '\\0' x")) == 3000000
        with pytest.raises(GuestError, match="no answer in"):
            await guest.run("sleep 60", limit=0.1)
        assert await guest.run("echo still there") == "still there\n"

        before = await guest.run("cat /proc/sys/kernel/random/boot_id")
        await guest.reboot()
        assert await guest.run("cat /proc/sys/kernel/random/boot_id") != before


async def test_what_the_kernel_complains_of_is_seen(machine):
    async with machine.boot(cpus=1) as guest:
        assert await guest.kernel_errors() == []
        await guest.run("echo '<3>critical medium error' >/dev/kmsg")
        (line,) = await guest.kernel_errors()
        assert line.endswith("critical medium error")


async def test_an_error_beside_a_guest_says_what_it_was_at(machine):
    with pytest.raises(GuestError, match="no answer in") as failed:
        async with machine.boot(cpus=2) as guest:
            await guest.run("sleep 60", limit=0.1)
    (account,) = failed.value.__notes__
    assert "stolen since" in account
    assert "QEMU says: running" in account
    assert account.count("RIP=") == 2
    assert "Run /init" in account


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        pytest.param("poweroff -f", "the guest is gone", id="power-off"),
        pytest.param("echo c >/proc/sysrq-trigger", "the guest has started anew", id="panic"),
    ],
)
async def test_a_guest_that_ends_is_not_waited_for(machine, end, reason):
    async with machine.boot(cpus=1) as guest:
        with pytest.raises(GuestError, match=reason):
            await guest.run(f"{end}; sleep 60")
