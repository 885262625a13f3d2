# SPDX-License-Identifier: Apache-2.0
"""The dashboard for Grafana as a file; what its queries find: tests/system/test_prometheus.py."""

import json
from itertools import combinations
from pathlib import Path

FILE = Path(__file__).parents[2] / "packaging" / "grafana" / "blkd.json"
DASHBOARD = json.loads(FILE.read_text())
PANELS = DASHBOARD["panels"]
COLUMNS = 24


def test_no_two_panels_have_one_number():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_panels_lie_side_by_side():
    cells = {
        panel["title"]: {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        for panel in PANELS
        if (place := panel["gridPos"])
    }
    assert all(x < COLUMNS for taken in cells.values() for x, _ in taken)
    assert [pair for pair in combinations(cells, 2) if cells[pair[0]] & cells[pair[1]]] == []


def test_every_query_asks_the_chosen_prometheus_for_the_chosen_disks():
    for panel in PANELS:
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert 'name=~"$name"' in target["expr"]
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} == {"datasource", "name"}
