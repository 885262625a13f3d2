# SPDX-License-Identifier: Apache-2.0
"""Images that fail on order do so in a served disk, whatever stands behind them."""

import time

import pytest

from harness.daemon import image, run
from harness.frontend import DISCARD, FLUSH, IN, IOERR, OK, OUT, WRITE_ZEROES

SIZE = 1 << 20
KINDS = {"read": IN, "write": OUT, "flush": FLUSH, "discard": DISCARD, "zeroes": WRITE_ZEROES}


@pytest.fixture(params=["file", "memory", "null"])
def behind(request, tmp_path, tmpfs):
    """The name of an image of each engine."""
    if request.param == "null":
        return "null:1M"
    return image((tmpfs if request.param == "memory" else tmp_path) / "a.img", SIZE)


@pytest.fixture
def disk(behind, serve):
    def with_rules(rules):
        _, front_end = serve(f"faulty:{rules}:{behind}")
        return front_end.disk()

    return with_rules


def send(disk, kind):
    if kind in {"discard", "zeroes"}:
        command = disk.discard if kind == "discard" else disk.write_zeroes
        return command([(0, 8)])
    out = b"x" * 4096 if kind == "write" else b""
    return disk.request(KINDS[kind], 0, out, 4096 if kind == "read" else 0).status


@pytest.mark.parametrize("kind", KINDS)
def test_every_third_request_of_a_kind_fails(disk, kind):
    driver = disk(f"fail@{kind}/3")
    assert [send(driver, kind) for _ in range(6)] == [OK, OK, IOERR] * 2
    assert all(send(driver, other) == OK for other in KINDS if other != kind)


def test_only_requests_that_touch_the_range_fail(disk):
    driver = disk("fail@any+4K-8K")
    statuses = [driver.read(sector, 4096)[0] for sector in (0, 1, 8, 15, 16)]
    assert statuses == [OK, IOERR, IOERR, IOERR, OK]
    assert driver.flush() == OK


def test_a_delayed_request_is_overtaken_and_done_in_the_end(disk):
    driver = disk("delay=200ms@write+0-4K")
    began = time.monotonic()
    slow = driver.submit(OUT, 0, b"s" * 4096)
    fast = driver.submit(OUT, 8, b"f" * 4096)
    assert driver.wait(fast)[0].status == OK
    assert time.monotonic() - began < 0.2
    assert driver.wait(slow)[0].status == OK
    assert time.monotonic() - began >= 0.2


def test_delayed_requests_are_written_where_they_belong(serve, tmp_path):
    path = image(tmp_path / "a.img", SIZE)
    _, front_end = serve(f"faulty:delay=5ms@write/2,short@any:{path}")
    driver = front_end.disk()
    heads = [driver.submit(OUT, n * 8, bytes([n]) * 4096) for n in range(16)]
    assert all(done.status == OK and done.written == 1 for done in driver.wait(*heads))
    assert path.read_bytes()[: 16 * 4096] == b"".join(bytes([n]) * 4096 for n in range(16))
    assert driver.read(8, 8192) == (OK, bytes([1]) * 4096 + bytes([2]) * 4096)


def test_a_stopped_ring_waits_for_the_delayed(behind, serve):
    daemon, front_end = serve(f"faulty:delay=1s@any:{behind}")
    driver = front_end.disk()
    head = driver.submit(IN, 0, size=4096)
    daemon.wait_for("in_flight", 1)
    assert driver.front_end.stop_ring(0) == 1
    assert driver.wait(head)[0].status == OK


def test_what_is_no_rule_is_refused_before_anything_is_served(tmp_path):
    done = run("serve", "faulty:break@read:null:1G", "--socket", tmp_path / "s")
    assert done.returncode == 1
    assert "'break@read' is no rule" in done.stderr
    assert "hint: for example faulty:" in done.stderr
