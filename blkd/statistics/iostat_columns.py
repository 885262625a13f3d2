# SPDX-License-Identifier: Apache-2.0
"""An export's rates under the names, and in the units, that iostat has for them."""

from types import MappingProxyType
from typing import Final

from blkd.statistics.rates import OperationRates, Rates

KIB: Final = 1024
MS: Final = 1000  # in a second
PER_CENT: Final = 100

PREFIXES: Final = MappingProxyType({"r": "read", "w": "write", "d": "discard"})
"""How the columns of an operation that has bytes begin."""


def iostat_columns(found: Rates) -> dict[str, float]:
    """The columns of `iostat -x`, in their order: requests and kB a second, ms, kB of a request.

    Those of merged requests are left out: what a guest merges is one request here.
    """
    columns: dict[str, float] = {}
    for prefix, operation in PREFIXES.items():
        columns |= _of_operation(prefix, getattr(found, operation))
    return columns | {
        "f/s": found.flush.per_second,
        "f_await": MS * found.flush.mean_seconds,
        "aqu-sz": found.queue_depth,
        "%util": PER_CENT * found.utilisation,
    }


def _of_operation(prefix: str, found: OperationRates) -> dict[str, float]:
    return {
        f"{prefix}/s": found.per_second,
        f"{prefix}kB/s": found.bytes_per_second / KIB,
        f"{prefix}_await": MS * found.mean_seconds,
        f"{prefix}areq-sz": found.mean_bytes / KIB,
    }
