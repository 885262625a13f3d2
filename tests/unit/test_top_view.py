# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.cli.keyboard import keys_in
from blkd.cli.top_screen import COLUMNS, columns, page, plain
from blkd.cli.top_view import LETTERS, ORDER_KEYS, View, press
from blkd.statistics.live_table import ORDERS, Row

SHOWN = tuple(column.order for column in COLUMNS)
TABLE = [
    Row(name="web", state="serving", iops=100.0, in_flight=0, p99=0.1),
    Row(name="db", state="serving", iops=300.0, in_flight=0, p99=0.2),
    Row(name="idle", state="serving", iops=0.0, in_flight=0),
    Row(name="old", state="failed"),
]


def pressed(keys, view=None):
    """The view after some keys."""
    view = view or View()
    for key in keys:
        view = press(view, key, SHOWN, 10)
    return view


def names(view):
    return [row.name for row in view.rows(TABLE)]


def test_first_comes_who_does_most():
    assert names(View()) == ["db", "web", "idle", "old"]


@pytest.mark.parametrize(("key", "order"), ORDER_KEYS.items())
def test_a_capital_orders_and_once_more_turns_round(key, order):
    other = View(order="iops" if order != "iops" else "name")
    once = pressed([key], other)
    assert once.order == order
    assert once.descending == (order not in {"name", "state"})
    assert pressed([key, key], other).descending != once.descending


def test_every_order_has_a_key_and_a_column():
    assert set(ORDER_KEYS.values()) == set(ORDERS) == set(SHOWN)
    assert not ORDER_KEYS.keys() & LETTERS.keys()


def test_angles_order_by_the_column_beside():
    view = View(order="state")
    assert pressed([">"], view).order == "iops"
    assert pressed(["<"], view).order == "name"
    assert pressed(["<", "<", "<"], view).order == "name"


def test_the_column_beside_is_one_that_is_on_the_screen():
    assert press(View(order="errors"), ">", ("name", "iops"), 10).order == "name"


def test_what_is_typed_behind_a_slash_leaves_only_such_names():
    typing = pressed(["/", "w", "e", "x", "backspace"])
    assert (typing.mode, typing.typed, names(typing)) == ("filter", "we", ["web"])
    done = pressed(["enter"], typing)
    assert (done.mode, names(done)) == ("table", ["web"])
    assert names(pressed(["="], done)) == ["db", "web", "idle", "old"]


def test_letters_are_no_keys_while_they_are_typed():
    view = pressed(["/", "q", "i", "N"])
    assert (view.ended, view.with_idle, view.order, view.typed) == (False, True, "iops", "qiN")


def test_idle_exports_are_hidden_and_shown():
    assert names(pressed("i")) == ["db", "web"]
    assert names(pressed("ii")) == ["db", "web", "idle", "old"]


def test_a_delay_is_typed():
    view = pressed([*"d2.5", "enter"])
    assert (view.interval, view.mode, view.wants_look) == (2.5, "table", True)


@pytest.mark.parametrize("typed", ["", "x", "0", "nan", "inf", "-1", "99999"])
def test_a_delay_that_is_none_changes_nothing(typed):
    view = pressed(["d", *typed, "enter"])
    assert (view.interval, view.mode) == (1.0, "table")
    assert view.problem
    assert pressed(["x"], view).problem is None


def test_help_is_left_by_any_key():
    assert pressed("h").mode == "help"
    assert pressed("hN").mode == "table"
    assert pressed("hN").order == "iops"


@pytest.mark.parametrize("keys", [["q"], ["interrupt"], ["h", "q"], ["/", "x", "interrupt"]])
def test_keys_that_end_it(keys):
    assert pressed(keys).ended


def test_scrolling_ends_where_the_rows_do():
    assert pressed(["down"] * 3).top == 3
    assert pressed(["down", "up", "up"]).top == 0
    assert pressed(["pagedown"]).top == 9
    assert pressed(["pagedown", "home"]).top == 0
    assert View(top=50).scrolled(30, 10).top == 20
    assert View(top=5).scrolled(3, 10).top == 0


@given(st.lists(st.sampled_from([*LETTERS, *ORDER_KEYS, "<", ">", "up", "x", "é", "backspace"])))
def test_no_keys_break_it(keys):
    view = pressed(keys)
    assert set(names(view)) <= {row.name for row in TABLE}


@given(st.text())
def test_what_a_terminal_sends_is_keys_without_escapes(text):
    assert all("\x1b" not in key for key in keys_in(text))


def test_sequences_of_terminals_are_keys():
    assert keys_in("a\x1b[A\x1bOB\x1b[5~\x1b[99;3X\x7f\r") == [
        *("a", "up", "down", "pageup", "backspace", "enter"),
    ]
    assert keys_in("\x1b") == ["escape"]


def test_narrow_terminals_leave_out_what_matters_least():
    wide = [column.order for column in columns(["web"], 200)]
    narrow = [column.order for column in columns(["web"], 60)]
    assert tuple(wide) == SHOWN
    assert {"name", "iops", "p99"} <= set(narrow) < set(wide)
    assert [order for order in wide if order in narrow] == narrow
    assert [column.order for column in columns(["web"], 1)] == ["name", "iops"]


def test_plain_lines_stand_in_columns():
    head, *lines = plain([*TABLE, Row(name="x" * 50, state="serving")], View())
    assert head.split() == [column.head for column in COLUMNS]
    assert (
        len({line.index(word) for line in lines for word in ("serving", "failed") if word in line})
        == 1
    )
    assert lines[0].split()[:3] == ["db", "serving", "300"]
    assert "x" * 50 not in "".join(lines)


def test_what_would_move_the_cursor_is_shown_as_text():
    _, line = plain([Row(name="a\x1b[2Jb", state="serving")], View())
    assert line.startswith("a\\x1b[2Jb")


def test_a_screen_has_at_least_a_row():
    assert page(2) == 1
    assert page(24) == 19
