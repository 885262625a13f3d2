# SPDX-License-Identifier: Apache-2.0
"""Prints the metrics with their types, labels and meanings, as `docs/monitoring.md` has them.

python -m blkd.daemon.metrics_document
"""

import sys
from typing import Final

from prometheus_client import Metric

from blkd.control.daemon_models import GroupMember, GroupView
from blkd.daemon.metrics import families
from blkd.daemon.observed import Observed, Space
from blkd.export.limits import Limit, Limits
from blkd.statistics.figures import Cell, Figures, Histogram, Requests

BEGIN: Final = "<!-- printed by python -m blkd.daemon.metrics_document -->\n"
END: Final = "<!-- end of what is printed -->\n"
TIMES: Final = Histogram(sum_ns=1)
EXAMPLE: Final = Observed(
    name="web",
    device="blk",
    wanted="serving",
    state="serving",
    since=0.0,
    space=Space(free=0, total=0, allocated=0, nearly_full=True),
    figures=Figures(cells=(Cell("read", "4K", Requests(1, 1, TIMES, TIMES, TIMES)),)),
    limits=Limits(iops=Limit(1)),
)
GROUP: Final = GroupView(
    name="gold",
    limits={"iops": "1"},
    members=(GroupMember(export="web", weight=1, state="sharing", granted={"iops": 1.0}),),
)
"""They have a series of every metric."""


def table() -> str:
    """All that is printed, as Markdown."""
    lines = ["| Metric | Type | Labels | Meaning |", "| --- | --- | --- | --- |"]
    for family in families([EXAMPLE], [GROUP]):
        labels = ", ".join(f"`{label}`" for label in _labels(family))
        lines.append(f"| `{_name(family)}` | {_type(family)} | {labels} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def _name(family: Metric) -> str:
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    return family.name + suffix


def _type(family: Metric) -> str:
    return {"info": "gauge, always 1"}.get(family.type, family.type)


def _labels(family: Metric) -> list[str]:
    return [label for label in family.samples[0].labels if label != "le"]


if __name__ == "__main__":
    sys.stdout.write(BEGIN + "\n" + table() + "\n" + END)
