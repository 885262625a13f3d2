# SPDX-License-Identifier: Apache-2.0
import pytest
from blkd.vsock_probes import Buffer, Credit, ok, parse
from hypothesis import given
from hypothesis import strategies as st

LONGEST = 32
WRAP = 1 << 32
ROOM = 1 << 18
u32 = st.integers(0, WRAP - 1)


# ---- lines ----


@given(st.integers(0, WRAP - 2), st.binary(max_size=20))
def test_a_line_is_read_up_to_its_end(port, behind):
    line = b"CONNECT %d\n" % port
    assert parse(line + behind) == (len(line), port)
    assert all(parse(line[:length])[0] == 0 for length in range(len(line)))


@given(st.binary(min_size=LONGEST).filter(lambda text: not text.startswith(b"CONNECT ")))
def test_a_long_text_is_no_line(text):
    assert parse(text)[0] == -1


@pytest.mark.parametrize(
    "text", [b"\n", b"connect 1\n", b"CONNECT\n", b"CONNECT  1\n", b"CONNECT 1 \n",
             b"CONNECT 1\r\n", b"CONNECT 4294967295\n", b"CONNECT 99999999999999999\n"]
)  # fmt: skip
def test_a_line_that_is_none_is_found_out(text):
    assert parse(text)[0] == -1


@given(u32)
def test_the_answer_says_the_port(port):
    assert ok(port) == b"OK %d\n" % port


# ---- credit ----


@given(u32, st.lists(st.tuples(st.integers(0, ROOM + 5), st.integers(0, ROOM)), max_size=30))
def test_a_guest_may_fill_our_room_and_no_more(start, steps):
    credit, inside = Credit(ROOM, start), 0
    for length, forwarded in steps:
        assert credit.take(length) == (inside + length <= ROOM)
        if inside + length <= ROOM:
            inside += length
        credit.forward(min(forwarded, inside))
        inside -= min(forwarded, inside)


@given(u32, st.lists(st.integers(1, 1 << 16), max_size=60))
def test_a_guest_that_must_stop_is_told_of_room(start, pieces):
    credit, told, received = Credit(ROOM, start), start, start
    for piece in pieces:
        length = min(piece, ROOM - (received - told) % WRAP)
        assert length, "the guest stands, and was not told of room"
        assert credit.take(length)
        received = (received + length) % WRAP
        if credit.forward(length):
            _, told = credit.tell()


@given(u32, st.integers(0, ROOM), st.integers(0, ROOM), st.integers(0, ROOM))
def test_a_guest_is_sent_what_it_has_room_for(start, room, sent, forwarded):
    credit = Credit(ROOM, start)
    sent, forwarded = min(sent, room), min(forwarded, sent, room)
    assert credit.learn(room, start) == room
    assert credit.send(sent) == room - sent
    assert credit.learn(room, (start + forwarded) % WRAP) == room - sent + forwarded


@given(u32, u32, u32)
def test_a_guest_that_lies_is_sent_no_more_than_it_says_to_have(start, room, forwarded):
    assert 0 <= Credit(ROOM, start).learn(room, forwarded) <= room


# ---- buffers ----


@given(
    st.integers(0, WRAP - 1),
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=100), st.booleans(), st.booleans(), st.booleans()),
        max_size=60,
    ),
)
def test_messages_come_out_as_they_went_in(start, steps):
    buffer, whole, open_part = Buffer(256, start), [], b""
    for data, ends, is_record, takes in steps:
        if len(buffer) + len(data) <= 256:
            buffer.add(data[:7], data[7:])
            open_part += data
            if ends:
                buffer.end(is_record)
                whole.append((open_part, is_record))
                open_part = b""
        if takes:
            assert buffer.message() == (whole.pop(0) if whole else None)
    while whole:
        assert buffer.message() == whole.pop(0)
    assert buffer.message() is None
    assert len(buffer) == len(open_part)
    assert buffer.clear()


@given(
    st.integers(0, WRAP - 1),
    st.lists(st.tuples(st.binary(max_size=64), st.integers(0, 64)), max_size=60),
)
def test_bytes_come_out_as_they_went_in(start, steps):
    buffer, model = Buffer(64, start), b""
    for data, most in steps:
        added = data[: 64 - len(model)]
        buffer.add(added)
        model += added
        taken = min(most, len(model))
        assert buffer.give(taken // 3, taken - taken // 3) == model[:taken]
        model = model[taken:]
        assert len(buffer) == len(model)


def test_a_full_buffer_of_messages_of_a_byte_keeps_all_ends():
    buffer = Buffer(256, 1000)
    for n in range(256):
        buffer.add(bytes([n]))
        buffer.end(n % 3 == 0)
    assert [buffer.message() for _ in range(256)] == [(bytes([n]), n % 3 == 0) for n in range(256)]


def test_an_end_without_bytes_is_none():
    buffer = Buffer(64)
    buffer.end()
    assert buffer.message() is None
