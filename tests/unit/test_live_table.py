# SPDX-License-Identifier: Apache-2.0
import pytest

from blkd.statistics.figures import Cell, Figures, Requests
from blkd.statistics.live_table import (
    ORDERS,
    Row,
    Sample,
    chosen,
    known_figures,
    ordered,
    rows,
    summary,
)

SECOND = 10**9


def figures(seconds, reads=0, **others):
    cells = (Cell("read", "4K", Requests(reads, 4096 * reads)),) if reads else ()
    return Figures(time_ns=int(seconds * SECOND), cells=cells, **others)


def test_a_row_has_what_was_done_since_the_look_before():
    before = known_figures([Sample("web", "serving", figures=figures(1, 50))])
    (row,) = rows(before, [Sample("web", "serving", figures=figures(3, 250))])
    assert (row.name, row.state, row.iops, row.read_bytes) == ("web", "serving", 100, 409600)


def test_what_was_not_there_before_has_no_rates_yet():
    (row,) = rows({}, [Sample("new", "serving", figures=figures(3, 250))])
    assert row == Row(name="new", state="serving")


def test_what_has_no_figures_is_a_row_of_its_state():
    before = {"tap": figures(1)}
    (row,) = rows(before, [Sample("tap", "failed", "no such TAP")])
    assert row == Row(name="tap", state="failed", reason="no such TAP")


def test_a_serving_export_that_holds_requests_is_held():
    before = {"web": figures(1), "old": figures(1)}
    web, old = rows(
        before,
        [
            Sample("web", "serving", figures=figures(2, held=3)),
            Sample("old", "stopping", figures=figures(2, held=3)),
        ],
    )
    assert (web.state, web.held, old.state) == ("held", 3, "stopping")


@pytest.mark.parametrize("by", ORDERS)
def test_rows_can_be_ordered_by_each_value(by):
    full = {each: 1.0 for each in ORDERS if each not in {"name", "state"}}
    first = Row(**{**full, "name": "a", "state": "failed", by: "a" if by == "name" else "failed"})
    if by not in {"name", "state"}:
        first = Row(**{**full, "name": "a", "state": "failed", by: 0.5})
    last = Row(**{**full, "name": "z", "state": "serving"})
    assert ordered([last, first], by, descending=False) == [first, last]
    assert ordered([first, last], by, descending=True) == [last, first]


def test_what_is_not_known_comes_last_in_both_directions():
    table = [Row(name="b", state="failed"), Row(name="a", state="serving", iops=1.0)]
    for descending in (True, False):
        assert [row.name for row in ordered(table, "iops", descending=descending)] == ["a", "b"]


def test_equal_rows_stay_in_the_order_of_their_names():
    table = [Row(name=name, state="serving", iops=1.0) for name in "cab"]
    assert [row.name for row in ordered(table, "iops", descending=True)] == ["a", "b", "c"]


def test_rows_are_chosen_by_a_part_of_the_name_or_the_begin_of_the_state():
    table = [Row(name="Web-1", state="serving"), Row(name="db", state="failed")]
    assert [row.name for row in chosen(table, "web")] == ["Web-1"]
    assert [row.name for row in chosen(table, "FAIL")] == ["db"]
    assert chosen(table, "") == table
    assert chosen(table, "nothing") == []


def test_idle_rows_are_those_without_requests_and_with_none_in_flight():
    idle = Row(name="idle", state="serving", iops=0.0, in_flight=0)
    stuck = Row(name="stuck", state="serving", iops=0.0, in_flight=1)
    busy = Row(name="busy", state="serving", iops=9.0, in_flight=0)
    assert chosen([idle, stuck, busy], "", with_idle=False) == [stuck, busy]


def test_a_summary_adds_rates_and_keeps_the_worst_times():
    found = summary(
        [
            Row(name="a", state="serving", iops=10.0, read_bytes=5.0, in_flight=2, p99=0.1),
            Row(name="b", state="serving", iops=5.0, write_bytes=7.0, in_flight=1, oldest=3.0),
            Row(name="c", state="failed"),
        ]
    )
    assert found.states == {"serving": 2, "failed": 1}
    assert (found.iops, found.read_bytes, found.write_bytes, found.in_flight) == (15, 5, 7, 3)
    assert (found.p99, found.oldest) == (0.1, 3.0)
