# SPDX-License-Identifier: Apache-2.0
"""docs/monitoring.md has the metrics as the code has them."""

from pathlib import Path

from blkd.daemon.metrics import families
from blkd.daemon.metrics_document import BEGIN, END, EXAMPLE, GROUP, table

DOCUMENT = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()


def test_the_document_has_every_metric():
    printed = DOCUMENT.partition(BEGIN)[2].partition(END)[0]
    assert printed.strip() == table().strip(), "run: python -m blkd.daemon.metrics_document"


def test_the_example_has_a_series_of_each():
    assert [family.name for family in families([EXAMPLE], [GROUP]) if not family.samples] == []
