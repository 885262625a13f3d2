# SPDX-License-Identifier: Apache-2.0
import contextlib
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from harness.guest import Device, Guest, Iommu, Machine

MIB = 1 << 20
APIC_LOST = re.compile(
    r"hw/pci/msix\.c:\d+: msix_table_mmio_write: Assertion|kthread timer wakeup didn't happen"
)
"""What is seen of QEMU 10 where an emulated processor's write to its APIC goes astray, some hundred
boots apart, as the memory map changes: it ends up in another device's table, of which QEMU dies,
or a timer is never set, which the guest's kernel tells after 21 s while all its processors halt."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test once more where QEMU has lost such a write; why the first failed is told."""
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    told = [str(report.longrepr) for report in reports if report.failed]
    if any(map(APIC_LOST.search, told)):
        writer = item.config.get_terminal_writer()
        writer.line("\n".join((*told, f"QEMU lost a write to an APIC, once more: {item.nodeid}")))
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.fixture
def boot(machine: Machine) -> Callable[..., contextlib.AbstractAsyncContextManager[Guest]]:
    """Boots guests; at the end of each its kernel must not have logged one error."""

    @contextlib.asynccontextmanager
    async def boot(
        *devices: Device, cpus: int = 4, iommu: Iommu | None = None
    ) -> AsyncIterator[Guest]:
        async with machine.boot(*devices, cpus=cpus, iommu=iommu) as guest:
            yield guest
            assert await guest.kernel_errors() == []
            assert await guest.power_off() == 0

    return boot


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes sparse images, each of 64 MiB unless said; they go when the test ends."""

    def image(name: str = "disk", size: int = 64 * MIB) -> Path:
        path = tmp_path / f"{name}.img"
        with path.open("xb") as file:
            file.truncate(size)
        return path

    yield image
    for path in tmp_path.glob("*.img"):
        path.unlink()


@pytest.fixture
def loop_device(image):
    """A block device with blocks of 4 KiB; needs root, as loop devices do."""
    backing = image("loop")
    attach = ["losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", backing]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "--detach", device], check=True)
