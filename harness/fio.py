# SPDX-License-Identifier: Apache-2.0
"""fio in the guest, whose verdict and figures come back as values."""

import json
from dataclasses import dataclass
from typing import Any, Self

from harness.guest import Guest

LIMIT = 120.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """What fio did in one direction."""

    bytes: int
    requests: int
    bandwidth: float
    """Bytes a second."""
    iops: float

    @classmethod
    def of(cls, job: dict[str, Any], direction: str) -> Self:
        """One direction of fio's JSON report on a job."""
        seen = job[direction]
        return cls(seen["io_bytes"], seen["total_ios"], seen["bw_bytes"], seen["iops"])


@dataclass(frozen=True, slots=True)
class Report:
    """What fio says of its jobs together."""

    read: Transfer
    """Reads that verify what was written are among them."""
    write: Transfer
    trim: Transfer
    flushes: int


async def fio(guest: Guest, device: str, *options: str, limit: float = LIMIT) -> Report:
    """Run fio on `device`, direct and with data it verifies by crc32c.

    Raises CommandFailed when a request failed or a block read was not the one written.
    """
    out = await guest.run(
        f"fio --name=job --filename={device} --direct=1 --ioengine=libaio --group_reporting "
        f"--verify=crc32c --verify_fatal=1 --output-format=json {' '.join(options)}",
        limit=limit,
    )
    (job,) = json.loads(out[out.index("{") :])["jobs"]
    assert job["error"] == 0, "fio ends with status 0 only then"
    read, write, trim = (Transfer.of(job, direction) for direction in ("read", "write", "trim"))
    return Report(read, write, trim, job["sync"]["total_ios"])
