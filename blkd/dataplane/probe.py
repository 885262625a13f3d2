# SPDX-License-Identifier: Apache-2.0
"""What this host's kernel can do for the data path."""

from blkd import ring
from blkd.errors import DataPlaneError


def probe_io_uring() -> dict[str, bool]:
    """Whether this kernel's io_uring has each operation that is used, by the operation's name.

    Raises:
        DataPlaneError: There is no io_uring, or it is forbidden.
    """
    try:
        return ring.probe_io_uring()
    except OSError as error:
        raise DataPlaneError(
            f"io_uring cannot be used: {error.strerror}",
            hint="Linux 6.1 or newer is needed, and kernel.io_uring_disabled must be 0",
        ) from error
