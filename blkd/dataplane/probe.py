# SPDX-License-Identifier: Apache-2.0
"""What this host's kernel can do for the data path, and what tracers find in it."""

from blkd import block, ring
from blkd.errors import DataPlaneError


def probe_io_uring() -> dict[str, bool]:
    """Whether this kernel's io_uring has each operation that is used, by the operation's name.

    Raises:
        DataPlaneError: There is no io_uring, or it is forbidden.
    """
    try:
        return ring.probe_io_uring()
    except OSError as error:
        raise _refusal(error) from error


def restricts_io_uring() -> bool:
    """Whether this kernel keeps an io_uring to what it was made for.

    Raises:
        DataPlaneError: There is no io_uring, or it is forbidden.
    """
    try:
        return ring.restricts_io_uring()
    except OSError as error:
        raise _refusal(error) from error


def traced_files() -> tuple[str, ...]:
    """The files whose USDT probes a tracer is pointed at; none on a processor that has none."""
    return (block.__file__, ring.__file__) if ring.has_usdt_probes() else ()


def _refusal(error: OSError) -> DataPlaneError:
    return DataPlaneError(
        f"io_uring cannot be used: {error.strerror}",
        hint="Linux 6.1 or newer is needed, and kernel.io_uring_disabled must be 0",
    )
