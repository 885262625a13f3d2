# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkd.cli.tables import draw

RESULT = {
    "name": "demo",
    "size": 1 << 30,
    "read_only": False,
    "broken_rings": (),
    "serial": None,
    "front_end": {"features": 0x30, "feature_names": ["MQ", "FLUSH"], "memory_regions": []},
    "rings": [
        {"index": 0, "state": "running", "bytes_read": 0},
        {"index": 10, "state": "stopped", "bytes_read": 4096},
    ],
}


def test_every_field_of_the_json_is_in_a_table():
    assert draw(RESULT, "disk").splitlines() == [
        "disk",
        "name                       demo",
        "size                       1 GiB",
        "read only                  no",
        "broken rings               -",
        "serial                     -",
        "front end: features        0x30",
        "front end: feature names   MQ, FLUSH",
        "front end: memory regions  -",
        "",
        "rings",
        "                bytes",
        "index  state     read",
        "─────  ───────  ─────",
        "    0  running    0 B",
        "   10  stopped  4 KiB",
    ]


def test_a_value_is_shown_as_it_is():
    path = "/a/[red]/" + "x" * 300
    assert draw({"image": path, "logical_size": 1}, "title").splitlines() == [
        "title",
        f"image         {path}",
        "logical size  1",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("/a\x1b[31m", "/a\\x1b[31m", id="escape-sequence"),
        pytest.param("/a\nstate  ok", "/a\\nstate  ok", id="another-line"),
        pytest.param("/\udce4", "/\\udce4", id="no-unicode"),
        pytest.param("/ä", "/ä", id="letter"),
    ],
)
def test_nothing_in_a_value_moves_the_cursor(text, shown):
    assert draw({"image": text}, "disk") == f"disk\nimage  {shown}"


def test_the_last_column_is_wrapped_between_words_where_the_terminal_ends():
    hint = "sysctl kernel.io_uring_disabled=0, or a member of kernel.io_uring_group for 1"
    assert draw({"checks": [{"name": "io_uring", "hint": hint}]}, "host", 45).splitlines() == [
        "checks",
        "name      hint",
        "────────  ───────────────────────────────────",
        "io_uring  sysctl kernel.io_uring_disabled=0,",
        "          or a member of",
        "          kernel.io_uring_group for 1",
    ]


@given(st.lists(st.fixed_dictionaries({"a": st.text(), "b": st.integers()}), min_size=1))
def test_a_line_for_each_record(records):
    assert len(draw({"records": records}, "title").split("\n")) == 3 + len(records)


def test_what_an_export_says_in_an_answer_of_the_daemon_is_shown_as_it_says_it_itself():
    view = {"since": 0.5, "served": {"size": 1 << 20, "devices": [{"name": "a", "features": 48}]}}
    shown = draw(view, "export").splitlines()
    assert shown[1].split(maxsplit=1)[0] == "since"
    assert ":00.500" in shown[1]
    assert shown[2] == "served: size  1 MiB"
    assert "0x30" in shown[-1]
