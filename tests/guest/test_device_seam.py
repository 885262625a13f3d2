# SPDX-License-Identifier: Apache-2.0
"""A device that is no disk under QEMU's vhost-user net: what Linux sends comes back."""

import contextlib
from pathlib import Path

import pytest

from harness.daemon import Process
from harness.guest import Net

ROOT = Path(__file__).parents[2]
PACKETS = 5
SEND = f"""
cd /sys/class/net/$card
ip link set $card up promisc on
ip address add 10.0.0.1/24 dev $card
arping -q -c {PACKETS} -w 30 -I $card 10.0.0.2
for _ in $(seq 100); do
    sent=$(cat statistics/tx_packets statistics/tx_bytes)
    received=$(cat statistics/rx_packets statistics/rx_bytes)
    [ "$sent" = "$received" ] && break
    sleep 0.1
done
echo $sent
echo $received
"""


@pytest.mark.timeout(150)
async def test_what_a_guest_sends_comes_back(boot, tmp_path):
    with contextlib.ExitStack() as stack:
        cards = []
        for packed in (False, True):
            path = tmp_path / f"packed-{packed}"
            command = ["python", "-m", "tests.devices.loopback", path]
            stack.enter_context(Process(command, tmp_path / "log", cwd=ROOT)).line()
            cards.append(Net(path, packed=packed))
        async with boot(*cards, cpus=2) as guest:
            for card in ("eth0", "eth1"):
                sent, received = (await guest.run(f"card={card}\n{SEND}")).splitlines()
                assert sent == received
                packets, size = map(int, sent.split())
                assert packets >= PACKETS
                assert size > 40 * PACKETS
                await guest.run(f"ip address flush dev {card}")
