# SPDX-License-Identifier: Apache-2.0
"""QMP as QEMU speaks it: answers by their ids, refusals, events, and an end."""

import asyncio
import json
import socket

import pytest

from harness.qmp import Qmp, QmpError


@pytest.fixture
async def qmp():
    """A client, and QEMU's end of its socket."""
    ours, theirs = socket.socketpair()
    _, client = await asyncio.get_running_loop().create_connection(Qmp, sock=ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    writer.write(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
    assert await next_command(reader) == ("qmp_capabilities", {}, 0)
    writer.write(b'{"return": {}, "id": 0}\r\n')
    yield client, reader, writer
    writer.close()


async def next_command(reader):
    message = json.loads(await reader.readline())
    return message["execute"], message.get("arguments", {}), message["id"]


def say(writer, **message):
    writer.write(json.dumps(message).encode() + b"\r\n")


async def test_answers_find_their_commands_in_whatever_order(qmp):
    client, reader, writer = qmp
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(client.execute("query-status"))
        second = tasks.create_task(client.execute("object-add", qom_type="x", size=1))
        commands = [await next_command(reader) for _ in range(2)]
        assert commands[1] == ("object-add", {"qom-type": "x", "size": 1}, 2)
        say(writer, **{"return": "second", "id": 2})
        say(writer, **{"return": "first", "id": 1})
    assert (first.result(), second.result()) == ("first", "second")


async def test_a_refusal_is_reported_in_qemu_s_words(qmp):
    client, reader, writer = qmp
    async with asyncio.TaskGroup() as tasks:
        refused = tasks.create_task(expect_refusal(client.execute("device_del", id="gone")))
        await next_command(reader)
        say(writer, error={"class": "DeviceNotFound", "desc": "not found"}, id=1)
    assert refused.result() == "device_del: not found"


async def expect_refusal(answer):
    with pytest.raises(QmpError) as refusal:
        await answer
    return str(refusal.value)


async def test_an_event_is_found_before_and_after_it_has_come(qmp):
    client, _, writer = qmp
    say(writer, event="DEVICE_DELETED", data={"device": "other"})
    say(writer, event="DEVICE_DELETED", data={"device": "dimm"})
    for _ in range(2):
        found = await client.event("DEVICE_DELETED", lambda event: event["device"] == "dimm")
        assert found == {"device": "dimm"}
    with pytest.raises(QmpError, match="no DEVICE_DELETED"):
        await client.event("DEVICE_DELETED", since=len(client.events), limit=0.05)


async def test_nothing_is_waited_for_once_qemu_is_gone(qmp):
    client, reader, writer = qmp
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(expect_refusal(client.execute("query-status")))
        await next_command(reader)
        writer.close()
    assert waiting.result() == "QEMU is gone"
    assert await expect_refusal(client.execute("query-status")) == "QEMU is gone"
    assert "gone" in await expect_refusal(client.event("STOP"))
