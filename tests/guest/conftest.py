# SPDX-License-Identifier: Apache-2.0
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from harness.guest import Device, Guest, Iommu, Machine

MIB = 1 << 20


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
