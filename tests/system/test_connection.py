# SPDX-License-Identifier: Apache-2.0
import errno
import gc
import os
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blkd.errors import BlkdError, DataPlaneError, DrainTimeout, ProtocolError, RequestRefused
from blkd.vhost_user.requests import MAX_PAYLOAD
from harness.frontend import (
    HEADER,
    NO_FD,
    DisconnectedError,
    Feature,
    GuestMemory,
    Protocol,
    Request,
    Vring,
)
from harness.open_fds import open_fds, wait_for_fds
from tests.served import Served


@pytest.fixture
def served():
    with Served() as served:
        yield served


def test_a_front_end_starts_and_stops_a_ring(served):
    front_end, data_path = served.front_end, served.data_path
    front_end.negotiate()
    assert (front_end.queues, front_end.max_mem_slots) == (4, 509)
    front_end.share_memory()
    ring = front_end.start_ring(1, 64)
    data_path.base = 17
    assert front_end.stop_ring(1) == 17
    names = [name for name in data_path.names() if name != "configure"]
    assert names == [
        *["add_memory"] * 2,
        "set_call",
        "set_error",
        "set_kick",
        "start_vring",
        "enable_vring",
        "stop_vring",
    ]
    setup = next(call[2] for call in data_path.calls if call[0] == "start_vring")
    assert (setup.size, setup.base) == (64, 0)
    assert setup.desc == front_end.memory.user_address(ring.desc)
    assert setup.avail == front_end.memory.user_address(ring.avail)
    assert setup.used == front_end.memory.user_address(ring.used)


def test_memory_comes_as_a_table_with_its_descriptors_in_order(served):
    front_end = served.front_end
    front_end.memory = GuestMemory([1 << 20] * 8)
    front_end.negotiate()
    front_end.share_memory(table=True)
    (call,) = [call for call in served.data_path.calls if call[0] == "set_memory"]
    assert [region.guest_address for region in call[1]] == [
        region.gpa for region in front_end.memory.regions
    ]
    assert call[2] == 8


def test_a_front_end_without_extensions_is_served(served):
    front_end = served.front_end
    front_end.negotiate(Feature.VERSION_1, 0)
    front_end.share_memory()
    front_end.start_ring()
    assert front_end.stop_ring() == 0
    assert served.data_path.names()[:5] == ["configure", *["enable_vring"] * 4]


def test_a_message_in_single_bytes_is_a_message(served):
    request = struct.pack("=III", Request.GET_CONFIG, 1, 16) + struct.pack("=III", 0, 4, 0)
    served.front_end.negotiate()
    for byte in request + bytes(4):
        served.front_end.sock.send(bytes([byte]))
    answer, flags, payload, _ = served.front_end.receive()
    assert (answer, flags, payload[12:]) == (Request.GET_CONFIG, 5, bytes(range(4)))


def test_messages_in_one_piece_are_all_answered(served):
    served.front_end.sock.send(HEADER.pack(Request.GET_FEATURES, 1, 0) * 20)
    for _ in range(20):
        assert served.front_end.receive()[0] == Request.GET_FEATURES


def test_what_the_session_holds_can_be_seen(served):
    front_end = served.front_end
    front_end.negotiate()
    front_end.share_memory()
    front_end.start_ring(2, 32)
    state = served.connection.show()
    assert state.features == front_end.features
    assert "VERSION_1" in state.feature_names
    assert state.protocol_features == front_end.protocol_features
    assert state.protocol_feature_names[:3] == ("MQ", "LOG_SHMFD", "REPLY_ACK")
    assert len(state.memory_regions) == 2
    assert [(ring.size, ring.started, ring.enabled) for ring in state.rings] == [
        (0, False, False),
        (0, False, False),
        (32, True, True),
        (0, False, False),
    ]
    assert state.back_channel


# How it ends


def test_an_error_of_the_host_comes_alone_and_the_rings_are_reset(served):
    served.data_path.failures["set_kick"] = OSError(errno.ENOSPC, "No space left on device")
    served.front_end.negotiate()
    served.front_end.send(Request.SET_VRING_KICK, bytes(8), [os.eventfd(0)])
    assert served.front_end.wait_closed()
    with pytest.raises(OSError, match="No space left"):
        raise served.end()
    assert served.data_path.names()[-1] == "reset"


def test_a_reset_that_fails_leaves_no_connection_behind(served):
    served.data_path.failures["reset"] = DataPlaneError("odd")
    served.front_end.negotiate()
    served.front_end.sock.shutdown(socket.SHUT_WR)
    assert served.front_end.wait_closed()
    with pytest.raises(DataPlaneError):
        raise served.end()


def test_a_front_end_that_closes_ends_the_connection_quietly(served):
    served.front_end.negotiate()
    assert served.end() is None
    assert served.data_path.names()[-1] == "reset"


def test_closing_ends_the_connection_quietly_even_in_mid_message(served):
    served.front_end.sock.send(b"\x01\x00")
    served.close()
    assert served.front_end.wait_closed()
    assert served.end() is None


def test_cancelling_resets_the_rings_and_closes_everything(served):
    served.front_end.negotiate()
    served.cancel()
    assert served.front_end.wait_closed()
    assert isinstance(served.end(), BaseException)
    assert served.data_path.names()[-1] == "reset"


def test_a_failing_data_plane_ends_the_connection(served):
    served.front_end.negotiate()
    served.front_end.share_memory()
    served.front_end.start_ring()
    served.data_path.failures["stop_vring"] = DrainTimeout("2 requests in flight")
    with pytest.raises(DisconnectedError):
        served.front_end.stop_ring()
    assert isinstance(served.end(), DrainTimeout)
    assert served.data_path.names()[-1] == "reset"


def test_a_front_end_that_reads_no_answers_can_be_left(served):
    served.front_end.sock.settimeout(0.2)
    flood = HEADER.pack(Request.GET_FEATURES, 1, 0) * 1_000_000
    with pytest.raises(TimeoutError):
        served.front_end.sock.sendall(flood)
    served.close()
    assert served.end() is None


# Refusals


def test_what_the_rings_refuse_is_answered_and_the_connection_lives(served):
    front_end = served.front_end
    front_end.negotiate()
    served.data_path.failures["add_memory"] = RequestRefused("not mappable")
    region = front_end.memory.regions[0]
    assert front_end.ack(Request.ADD_MEM_REG, bytes(8) + region.pack(), [region.fd]) != 0
    del served.data_path.failures["add_memory"]
    front_end.share_memory()


def test_a_refusal_that_nobody_asked_for_ends_the_connection(served):
    served.front_end.negotiate()
    served.front_end.send(Request.SET_VRING_ENABLE, struct.pack("=II", 99, 1))
    assert served.front_end.wait_closed()
    assert isinstance(served.end(), ProtocolError)


def test_a_refused_config_read_has_an_empty_reply(served):
    assert served.front_end.call(Request.GET_CONFIG, struct.pack("=III", 0, 8, 0) + bytes(8)) == b""


# Malformed input


def send_raw(front_end, data, fds=()):
    socket.send_fds(front_end.sock, [data], list(fds))


@pytest.mark.parametrize(
    ("data", "fds", "reason"),
    [
        pytest.param(HEADER.pack(1, 1, MAX_PAYLOAD + 1), 0, "announces 4109", id="too-long"),
        pytest.param(HEADER.pack(1, 1, 2**32 - 1), 0, "announces", id="absurdly-long"),
        pytest.param(HEADER.pack(1, 2, 0), 0, "version 2", id="version"),
        pytest.param(HEADER.pack(1, 5, 0), 0, "a reply", id="reply"),
        pytest.param(HEADER.pack(1, 0x101, 0), 0, "flags", id="unknown-flags"),
        pytest.param(HEADER.pack(1, 1, 1) + b"x", 0, "1 bytes, not 0", id="payload-unwanted"),
        pytest.param(HEADER.pack(2, 1, 4) + bytes(4), 0, "4 bytes, not 8", id="payload-short"),
        pytest.param(HEADER.pack(1, 1, 0), 1, "1 descriptors, not 0", id="descriptor-unwanted"),
        pytest.param(HEADER.pack(12, 1, 8) + bytes(8), 0, "0 descriptors", id="no-descriptor"),
        pytest.param(HEADER.pack(12, 1, 8) + bytes(8), 8, "8 descriptors", id="8-descriptors"),
        pytest.param(HEADER.pack(1, 1, 0), 9, "9 descriptors", id="9-descriptors"),
        pytest.param(HEADER.pack(1, 1, 0), 250, "250 descriptors", id="250-descriptors"),
        pytest.param(
            HEADER.pack(12, 1, 8) + struct.pack("=Q", NO_FD), 0, "polling", id="kick-without-fd"
        ),
    ],
)
def test_a_malformed_message_ends_the_connection(served, data, fds, reason):
    with open(os.devnull) as file:  # noqa: PTH123 - a descriptor is all we want
        send_raw(served.front_end, data, [file.fileno()] * fds)
    assert served.front_end.wait_closed()
    with pytest.raises(ProtocolError, match=reason):
        raise served.end()


@pytest.mark.parametrize("size", [1, 11, 12, 15])
def test_half_a_message_ends_the_connection(served, size):
    served.front_end.sock.send((HEADER.pack(2, 1, 8) + bytes(8))[:size])
    error = served.end()
    assert isinstance(error, ProtocolError)
    assert "mid-message" in str(error)


def test_descriptors_spread_over_a_message_are_counted_together(served):
    with open(os.devnull) as file:  # noqa: PTH123 - a descriptor is all we want
        for byte in HEADER.pack(1, 1, 0)[:3]:
            send_raw(served.front_end, bytes([byte]), [file.fileno()] * 4)
    assert served.front_end.wait_closed()
    with pytest.raises(ProtocolError, match="12 descriptors"):
        raise served.end()


def test_no_descriptor_is_leaked_by_refusals_and_failures():
    before = open_fds()
    for failure in ("set_memory", "remove_memory", "set_kick", "set_call", "start_vring"):
        with Served() as served:
            served.data_path.failures[failure] = RequestRefused("no")
            front_end = served.front_end
            front_end.negotiate()
            regions = front_end.memory.regions
            table = struct.pack("=II", 2, 0) + b"".join(region.pack() for region in regions)
            front_end.ack(Request.SET_MEM_TABLE, table, [region.fd for region in regions])
            front_end.ack(Request.REM_MEM_REG, bytes(8) + regions[0].pack(), [regions[0].fd])
            front_end.ack(77, b"", [regions[0].fd] * 8)
            front_end.ack(Request.SET_LOG_BASE, bytes(16), [regions[0].fd])
            ring = Vring(front_end.memory, 8)
            front_end.rings[0] = ring
            ring.index = 0
            front_end.ack(Request.SET_VRING_NUM, struct.pack("=II", 0, 8))
            front_end.ack(Request.SET_VRING_ADDR, front_end.ring_addresses(ring))
            front_end.ack(Request.SET_VRING_KICK, bytes(8), [ring.kick_fd])
            front_end.ack(Request.SET_VRING_CALL, bytes(8), [ring.call_fd])
            front_end.ack(Request.SET_VRING_ERR, struct.pack("=Q", 99), [ring.err_fd])
            front_end.ack(Request.SET_BACKEND_REQ_FD, b"", [regions[0].fd])
            front_end.ack(Request.ADD_MEM_REG, bytes(8) + regions[0].pack(), [regions[0].fd])
            assert failure in served.data_path.names()
    assert wait_for_fds(before)


messages = st.tuples(
    st.integers(0, 45),
    st.sampled_from([1, 1, 1, 9, 9, 9, 0, 5, 2**31 + 1]),
    st.binary(max_size=80) | st.sampled_from([bytes(8), struct.pack("=II", 0, 1), bytes(40)]),
    st.integers(0, 9),
    st.integers(0, 3),
)


@settings(max_examples=100)
@given(st.lists(messages, min_size=1, max_size=10))
def test_arbitrary_messages_raise_only_our_own_errors_and_leak_nothing(said):
    gc.collect()  # what other tests have left is not to go in between
    before = open_fds()
    with Served() as served, open(os.devnull) as file:  # noqa: PTH123
        served.front_end.negotiate()
        try:
            for request, flags, payload, fds, lie in said:
                size = len(payload) + (4 if lie == 0 else 0)
                data = HEADER.pack(request, flags, size) + payload
                send_raw(served.front_end, data, [file.fileno()] * fds)
        except (BrokenPipeError, ConnectionResetError):
            pass
        error = served.end()
        assert error is None or isinstance(error, BlkdError)
        assert served.data_path.names()[-1] == "reset"
    assert wait_for_fds(before)


def test_protocol_features_are_those_that_were_asked_for(served):
    served.front_end.negotiate(protocol_features=Protocol.REPLY_ACK)
    assert served.connection.show().protocol_feature_names == ("REPLY_ACK",)
