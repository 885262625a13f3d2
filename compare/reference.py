# SPDX-License-Identifier: Apache-2.0
"""Figures from another machine, where SPDK could be measured beside the others.  Pure.

A machine of this kind: two virtual processors, the client polling on CPU 0, the target on CPU 1.
"""

from dataclasses import dataclass
from typing import Final

QSD: Final = "QSD 7.2, its best"
SPDK: Final = "SPDK 26.09 vhost, its best"
SPDK_POLLS: Final = "SPDK 26.09 vhost (polls)"
K: Final = 1e3
M: Final = 1e6
GIB: Final = float(1 << 30)


@dataclass(frozen=True, slots=True)
class Figure:
    """What one subject did in one case there."""

    case: str
    subject: str
    iops: float | None = None
    cpu_us: str = ""
    """For each request; a range where several settings gave several figures."""
    bytes_per_second: float | None = None


FIGURES: Final = (
    Figure("null-randread-4k-qd1", QSD, 292 * K, "3.3"),
    Figure("null-randread-4k-qd1", SPDK_POLLS, 2.2 * M, "0.22"),
    Figure("null-randread-4k-qd32", QSD, 3.28 * M, "0.30"),
    Figure("null-randread-4k-qd32", SPDK_POLLS, 5.2 * M, "0.16"),
    Figure("null-randread-4k-qd128", QSD, 3.17 * M, "0.31"),
    Figure("null-randread-4k-qd128", SPDK_POLLS, 5.8 * M, "0.16"),
    Figure("tmpfs-randread-4k-qd1", QSD, 67 * K),
    Figure("tmpfs-randread-4k-qd1", SPDK, 288 * K),
    Figure("tmpfs-randread-4k-qd1", "fio psync", 417 * K),
    Figure("tmpfs-randread-4k-qd32", QSD, 126 * K),
    Figure("tmpfs-randread-4k-qd32", SPDK, 318 * K),
    Figure("tmpfs-randread-4k-qd32", "fio libaio", 282 * K),
    Figure("tmpfs-randread-4k-qd32", "fio io_uring", 226 * K),
    Figure("tmpfs-randread-4k-qd128", QSD, 176 * K),
    Figure("tmpfs-randread-4k-qd128", SPDK, 352 * K),
    Figure("tmpfs-read-128k-qd32", SPDK, bytes_per_second=4.8 * GIB),
    Figure("ext4-randread-4k-qd1", QSD, cpu_us="55–60"),
    Figure("ext4-randread-4k-qd1", "SPDK 26.09 vhost (busy)", cpu_us="28"),
    Figure("ext4-randread-4k-qd1", "fio io_uring", cpu_us="25"),
    Figure("ext4-randread-4k-qd32", QSD, cpu_us="19–21"),
    Figure("ext4-randread-4k-qd32", "SPDK 26.09 vhost (busy)", cpu_us="5.6–7.8"),
    Figure("ext4-randread-4k-qd32", "fio io_uring", cpu_us="6.4"),
)


def there(case: str, subject: str) -> Figure:
    """A figure that is known to be there."""
    (figure,) = (f for f in FIGURES if (f.case, f.subject) == (case, subject))
    return figure


def advantage(case: str, ours: str, theirs: str) -> float:
    """How many times the requests of the one the other carried there."""
    a, b = there(case, ours).iops, there(case, theirs).iops
    assert a is not None
    assert b is not None
    return a / b
