# SPDX-License-Identifier: Apache-2.0
"""A daemon dies, by force or not, and the next one finds what it served: guests notice nothing."""

import contextlib
import itertools
import os
import re
import select
import signal
import threading
import time
from pathlib import Path

import pytest

from drills.daemon import processes_of
from harness.frontend import OK, FrontEnd
from harness.host import HostDaemon, Refused
from tests import launched

SIZE = 1 << 20
BLOCKS = SIZE // 4096
LIMIT = 20.0  # seconds for a state to come about


@pytest.fixture
def host(tmp_path):
    with HostDaemon(tmp_path) as started:
        started.ready()
        yield started


@pytest.fixture
def web(host):
    """An export with a process."""
    return host.add("web", host.image("web.img", SIZE))


def wait_for(is_so):
    """Wait until `is_so` returns something true: that."""
    deadline = time.monotonic() + LIMIT
    while not (found := is_so()):
        assert time.monotonic() < deadline, is_so
        select.poll().poll(10)
    return found


def in_state(host, name, state):
    """Wait until an export is in a state: what is shown of it."""

    def found():
        view = host.call("GET", f"/v1/exports/{name}")
        return view if view["state"] == state else None

    return wait_for(found)


def has_ended(pid):
    """Whether a process has ended, with all threads, but for what its parent has to do."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return launched.has_ended(pidfd, 0)
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def verified_load(socket):
    """A front end that writes and reads without a pause, on one connection, until the end."""
    over, failures, rounds = threading.Event(), [], itertools.count()
    with FrontEnd.connect(socket) as front_end:
        disk = front_end.disk()

        def load():
            try:
                while not over.is_set():
                    number = next(rounds)
                    at, data = number % BLOCKS * 8, number.to_bytes(8, "big") * 512
                    assert disk.write(at, data) == OK
                    assert disk.read(at, len(data)) == (OK, data)
            except BaseException as error:  # noqa: BLE001 - told below
                failures.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            yield lambda: next(rounds)
        finally:
            over.set()
            thread.join(LIMIT)
        assert not failures, failures


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda each: each.name)
def test_a_guest_does_not_notice_that_the_daemon_is_another(host, web, number):
    with verified_load(web["sockets"][0]) as done:
        for _ in range(2):
            host.process.end(number, 10)
            before = done()
            host.restart()
            view = in_state(host, "web", "serving")  # one that answers late is found later
            assert (view["pid"], view["restarts"]) == (web["pid"], 0)
            wait_for(lambda before=before: done() > before + 50)
    assert view["served"]["front_end"] is not None


def test_an_adopted_export_is_one_like_any_other(host, web):
    host.kill()
    host.restart()
    os.kill(web["pid"], signal.SIGKILL)
    wait_for(lambda: host.exports()[0]["pid"] not in {None, web["pid"]})
    in_state(host, "web", "serving")
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        assert front_end.disk().write(0, bytes(512)) == OK
    assert host.call("POST", "/v1/exports/web/stop")["state"] == "stopped"
    assert not Path(web["sockets"][0]).exists()


def test_an_export_that_died_while_there_was_no_daemon_is_started(host, web):
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        disk = front_end.disk()
        assert disk.write(0, b"x" * 512) == OK
        host.kill()
        os.kill(web["pid"], signal.SIGKILL)
        wait_for(lambda: has_ended(web["pid"]))
        host.restart()
        front_end.resume(web["sockets"][0])
        assert disk.read(0, 512) == (OK, b"x" * 512)


@pytest.mark.usefixtures("web")
def test_a_paused_export_is_paused_after_adoption(host):
    host.call("POST", "/v1/exports/web/pause", {"deadline": 1})
    host.kill()
    host.restart()
    in_state(host, "web", "paused")
    assert host.call("POST", "/v1/exports/web/resume")["state"] == "serving"


def test_an_export_that_was_to_stop_is_ended_by_the_next_daemon(host, web):
    host.kill()
    record = host.folder / "state" / "exports" / "web.toml"
    record.write_text(record.read_text().replace('wanted = "serving"', 'wanted = "stopped"'))
    host.restart()
    wait_for(lambda: has_ended(web["pid"]))
    assert in_state(host, "web", "stopped")["pid"] is None


def test_a_process_that_does_not_answer_is_adopted_once_it_does(host, web):
    os.kill(web["pid"], signal.SIGSTOP)
    host.process.end(signal.SIGKILL)
    host.restart()
    refused = in_state(host, "web", "restarting")
    assert f"process {web['pid']}, which has its sockets, does not answer" in refused["reason"]
    os.kill(web["pid"], signal.SIGCONT)
    assert in_state(host, "web", "serving")["pid"] == web["pid"]


def test_exports_may_end_with_their_daemon(tmp_path):
    with HostDaemon(tmp_path, on_stop="stop") as host:
        host.ready()
        web = host.add("web", host.image("web.img", SIZE))
        host.process.end()
        assert has_ended(web["pid"])
        host.restart()
        view = in_state(host, "web", "serving")
        assert view["pid"] != web["pid"]


@pytest.mark.usefixtures("web")
def test_events_have_greater_ids_with_every_daemon(host):
    ids = []
    for _ in range(2):
        host.kill()
        host.restart()
        in_state(host, "web", "serving")
        events = host.call("GET", "/v1/exports/web/logs")["events"]
        assert isinstance(events, list)
        ids.append(last_event_id(host))
    assert ids == sorted(set(ids))


def last_event_id(host):
    """The id of the last event so far, from the stream that ends there."""
    return max(
        int(line.removeprefix("id:"))
        for line in host.stream("/v1/events?since=0&follow=false").splitlines()
        if line.startswith("id:")
    )


def test_one_that_is_not_wanted_and_does_not_answer_is_ended(host, web):
    os.kill(web["pid"], signal.SIGSTOP)
    host.kill()
    record = host.records / "web.toml"
    record.write_text(record.read_text().replace('wanted = "serving"', 'wanted = "stopped"'))
    host.restart()
    wait_for(lambda: has_ended(web["pid"]))
    assert in_state(host, "web", "stopped")["pid"] is None


def test_an_export_that_does_not_answer_is_ended_with_its_export(host, web):
    """One that hangs is not adopted, and must not serve on when its export is removed."""
    os.kill(web["pid"], signal.SIGSTOP)
    host.kill()
    host.restart()
    host.call("DELETE", "/v1/exports/web?delete-image=true")
    assert has_ended(web["pid"])
    assert not (host.images / "web.img").exists()


def test_a_disk_that_was_being_upgraded_goes_on(host, web):
    """The daemon dies in the midst: who takes over serves on with nobody to tell."""
    with verified_load(web["sockets"][0]):
        os.kill(web["pid"], signal.SIGSTOP)
        host.call("POST", "/v1/exports/web/upgrade", wait=0)
        logs = host.folder / "state" / "log"
        wait_for(lambda: len(list(processes_of(logs))) == len({"giver", "taker"}))
        host.crash()
        os.kill(web["pid"], signal.SIGCONT)
        wait_for(lambda: has_ended(web["pid"]))
        host.restart()
        found = in_state(host, "web", "serving")
    assert found["pid"] not in {None, web["pid"]}
    assert found["restarts"] == 0


def test_a_disk_that_is_upgraded_for_a_dead_daemon_is_found_again(host, web):
    """The next daemon finds the process that only then gives its disk away."""
    with verified_load(web["sockets"][0]):
        os.kill(web["pid"], signal.SIGSTOP)
        host.call("POST", "/v1/exports/web/upgrade", wait=0)
        logs = host.folder / "state" / "log"
        wait_for(lambda: len(list(processes_of(logs))) == len({"giver", "taker"}))
        host.crash()
        host.begin_again()
        os.kill(web["pid"], signal.SIGCONT)
        host.ready()
        wait_for(lambda: has_ended(web["pid"]))
        found = wait_for(lambda: _served_by_another(host, web["pid"]))
        (pid,) = processes_of(logs)
    assert found["pid"] == pid


def _served_by_another(host, pid):
    view = host.call("GET", "/v1/exports/web")
    return view if view["state"] == "serving" and view["pid"] not in {None, pid} else None


def test_a_process_with_the_user_of_another_export_is_not_adopted(host, web):
    """As if a hostile one had got hold of the socket and made it listen."""
    host.kill()
    record = host.records / "web.toml"
    text = record.read_text()
    own = re.search(r"^user = (\d+)$", text, re.MULTILINE)[1]
    record.write_text(text.replace(own, str(2_000_000_000 + (int(own) + 1) % 1000)))
    host.restart()
    view = wait_for(lambda: next((each for each in host.exports() if each["reason"]), None))
    assert f"process {web['pid']} has the sockets of web, and is another" in view["reason"]
    assert not has_ended(web["pid"])
    with pytest.raises(Refused, match="is another"):
        host.call("POST", "/v1/exports/web/stop")
    assert not has_ended(web["pid"])
    os.kill(web["pid"], signal.SIGKILL)
    wait_for(lambda: has_ended(web["pid"]))
    host.call("DELETE", "/v1/exports/web")
