# SPDX-License-Identifier: Apache-2.0
"""Exports of a daemon over its API: added, changed, killed, started again, removed."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blkd.control import lending
from harness.daemon import PROGRAMS, Process, run
from harness.daemon import image as make_image
from harness.frontend import OK, OUT, FrontEnd
from harness.host import HostDaemon, Refused
from tests.system.test_daemon_adoption import SIZE, has_ended, in_state, wait_for

PROBLEM = "urn:blkd:problem:"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A daemon for all tests that leave it as it was."""
    with HostDaemon(tmp_path_factory.mktemp("host")) as started:
        started.ready()
        yield started


@pytest.fixture
def host(shared):
    """A daemon without exports."""
    yield shared
    for export in shared.exports():
        with contextlib.suppress(Refused):
            shared.call("DELETE", f"/v1/exports/{export['name']}")
    for left in shared.images.iterdir():
        left.unlink()


@pytest.fixture
def web(host):
    return host.add("web", host.image("web.img", SIZE))


def record_of(host, name):
    return host.folder / "state" / "exports" / f"{name}.toml"


def refusal(host, *call):
    """The type, after the prefix, and the detail of the problem that a call meets."""
    with pytest.raises(Refused) as refused:
        host.call(*call)
    problem = refused.value.problem
    return problem.get("type", "").removeprefix(PROBLEM), problem.get("detail")


# ---- added ----


def test_an_export_is_served_where_it_says(host, web):
    assert (web["state"], web["wanted"]) == ("serving", "serving")
    assert web["sockets"] == [str(host.run / "web.sock")]
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        assert front_end.disk().write(0, b"x" * 512) == OK
    assert (host.images / "web.img").read_bytes()[:512] == b"x" * 512


def test_to_add_it_again_changes_nothing(host, web):
    again = host.add("web", host.images / "web.img", queues=4)  # the default
    assert again["pid"] == web["pid"]
    call = "POST", "/v1/exports", {"name": "web", "settings": {"image": "/x", "queues": 2}}
    assert refusal(host, *call)[0] == "export-exists"


def test_one_of_many_who_add_it_does(host):
    image = str(host.image("web.img", SIZE))
    with ThreadPoolExecutor(8) as executor:
        views = list(executor.map(lambda _: host.add("web", image), range(8)))
    assert len({view["pid"] for view in views}) == 1


def test_what_cannot_be_served_is_not_kept(host):
    kind, detail = refusal(
        host, "POST", "/v1/exports", {"name": "web", "settings": {"image": f"{host.images}/x.img"}}
    )
    assert (kind, "No such file" in detail) == ("image-error", True)
    assert host.exports() == []
    assert not record_of(host, "web").exists()
    assert not (host.run / "web.sock").exists()


def test_an_image_that_was_made_for_nothing_is_deleted(host):
    image = host.images / "new.img"
    body = {
        "name": "web",
        "settings": {"image": str(image), "logical_block_size": 4096},
        "create": {"size": 512},
    }
    assert refusal(host, "POST", "/v1/exports", body)[0] == "image-error"
    assert not image.exists()


def test_an_image_is_made_with_its_export_and_deleted_with_it(host):
    image = host.images / "new.img"
    body = {
        "name": "web",
        "settings": {"image": str(image)},
        "create": {"size": SIZE, "preallocate": True},
    }
    host.call("POST", "/v1/exports", body)
    assert (image.stat().st_size, image.stat().st_blocks * 512) == (SIZE, SIZE)
    (found,) = host.call("GET", "/v1/images")["images"]
    assert (found["path"], found["used_by"]) == (str(image), ["web"])
    removed = host.call("DELETE", "/v1/exports/web?delete-image=true")
    assert (removed["removed"], removed["image_deleted"]) == (True, True)
    assert not image.exists()
    assert host.call("DELETE", "/v1/exports/web")["removed"] is False


def test_an_image_that_another_export_has_is_not_deleted(host):
    image = host.image("web.img", SIZE)
    for name in ("a", "b"):
        host.add(name, image, read_only=True)
    kind, detail = refusal(host, "DELETE", "/v1/exports/a?delete-image=true")
    assert (kind, "is the image of b too" in detail) == ("request-refused", True)
    assert len(host.exports()) == 2


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
def test_an_image_is_not_deleted_by_another_name_for_it(host, link):
    image = host.image("one.img", SIZE)
    other = host.images / "." / "other.img"
    match link:
        case None:
            other = f"{host.images}/./one.img"
        case "symbolic":
            other.symlink_to("one.img")
        case "hard":
            other.hardlink_to(image)
    for name, path in (("one", image), ("other", other)):
        body = {"name": name, "settings": {"image": str(path)}, "start": False}
        host.call("POST", "/v1/exports", body)
    for name in ("one", "other"):
        kind, detail = refusal(host, "DELETE", f"/v1/exports/{name}?delete-image=true")
        assert (kind, "is the image of" in detail) == ("request-refused", True)
    for name in ("one", "other"):
        host.call("DELETE", f"/v1/exports/{name}")
    if link:
        other.unlink()
    image.unlink()


@pytest.mark.usefixtures("web")
def test_an_image_that_another_program_has_is_not_deleted(host):
    image = host.images / "web.img"
    host.call("POST", "/v1/exports/web/stop")
    command = ["blkd", "serve", image, "--socket", host.run / "other.sock", "--json"]
    with Process(command, host.folder / "other.log") as other:
        other.line()
        kind, _ = refusal(host, "DELETE", "/v1/exports/web?delete-image=true")
    assert kind == "image-busy"
    assert image.exists()
    assert [export["name"] for export in host.exports()] == ["web"]


@pytest.mark.parametrize(
    "image",
    ["/etc/shadow", "{images}/../state/exports/web.toml", "{images}/link", "/proc/self/exe", "x"],
)
def test_what_lies_elsewhere_is_not_served(host, image):
    (host.images / "link").symlink_to("/etc/shadow")
    body = {"name": "web", "settings": {"image": image.format(images=host.images)}}
    kind, detail = refusal(host, "POST", "/v1/exports", body)
    assert kind in {"image-error", "config-error"}
    assert "lies in none" in detail or "leads out" in detail or "no absolute path" in detail


@pytest.mark.parametrize(
    "path", ["/tmp/web.img", "{images}/../web.img", "{images}/out/web.img", "{images}/"]
)
def test_no_image_is_made_elsewhere(host, path):
    (host.images / "out").symlink_to("/tmp")
    body = {"path": path.format(images=host.images), "size": 512}
    assert refusal(host, "POST", "/v1/images", body)[0] == "image-error"


@pytest.mark.parametrize(
    "path", ["/tmp/x.sock", "{run}/../x.sock", "{run}/blkd.sock", "{run}/exports/x"]
)
def test_no_socket_is_made_elsewhere(host, path):
    settings = {"image": str(host.image("web.img", SIZE)), "socket": path.format(run=host.run)}
    body = {"name": "web", "settings": settings}
    assert refusal(host, "POST", "/v1/exports", body)[0] == "config-error"


def test_a_socket_of_another_export_is_not_taken(host, web):
    host.call("POST", "/v1/exports/web/stop")
    (socket,) = web["sockets"]
    settings = {"image": str(host.image("second.img", SIZE))}
    body = {"name": "second", "settings": settings | {"socket": f"{host.run}/./web.sock"}}
    assert refusal(host, "POST", "/v1/exports", body)[0] == "export-exists"
    host.add("second", settings["image"])
    change = {"settings": {"socket": socket}}
    assert refusal(host, "PATCH", "/v1/exports/second", change)[0] == "export-exists"
    host.call("DELETE", "/v1/exports/second?delete-image=true")


def test_a_socket_is_where_it_is_said_to_be(host, web):
    """One that is to lie elsewhere does from the next start on, be that after an accident."""
    (was,), becomes = map(Path, web["sockets"]), host.run / "moved.sock"
    host.call("PATCH", "/v1/exports/web", {"settings": {"socket": str(becomes)}})
    host.call("PATCH", "/v1/exports/web", {"settings": {"socket_mode": "0666"}})
    assert host.call("GET", "/v1/exports/web")["sockets"] == [str(was)]
    assert was.stat().st_mode & 0o777 == 0o666
    host.call("POST", "/v1/exports/web/kill")
    again = in_state(host, "web", "serving")
    assert (again["sockets"], was.exists()) == ([str(becomes)], False)
    with FrontEnd.connect(becomes):
        pass


def test_a_tap_is_served_only_if_it_is_named(host):
    body = {"name": "n", "device": "net", "settings": {"tap": "tap-of-nobody"}}
    kind, detail = refusal(host, "POST", "/v1/exports", body)
    assert (kind, "none that may be served" in detail) == ("config-error", True)


def test_sockets_of_a_guest_are_served(host):
    body = {"name": "v", "device": "vsock", "settings": {"cid": [3, 4]}}
    view = host.call("POST", "/v1/exports", body)
    assert view["sockets"] == [str(host.run / f"v-{cid}.sock") for cid in (3, 4)]
    assert view["served"]["device"] == "vsock"


def test_sockets_for_host_programs_are_one_export_s_and_go_with_it(host):
    paths = [host.run / name for name in ("v.uds", "v.uds.seqpacket")]
    settings = {"cid": [3], "uds": [str(paths[0])]}
    host.call("POST", "/v1/exports", {"name": "v", "device": "vsock", "settings": settings})
    assert all(path.is_socket() for path in paths)
    for taken in paths:
        body = {"name": "w", "device": "vsock", "settings": {"cid": [4], "uds": [str(taken)]}}
        kind, _ = refusal(host, "POST", "/v1/exports", body)
        assert kind == "export-exists"
    host.kill()
    host.restart()
    host.call("DELETE", "/v1/exports/v")
    assert not any(path.exists() for path in paths)


# ---- killed ----


def test_a_killed_export_is_back_and_its_requests_are_carried_out(host):
    image = host.image("web.img", SIZE)
    web = host.add("web", f"faulty:delay=500ms@any+0-64K:{image}")
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        front_end.prepare()
        front_end.track_inflight()
        disk = front_end.make_disk(0, 128)
        heads = [disk.submit(OUT, n * 8, bytes([n + 1]) * 4096) for n in range(8)]
        assert disk.write(256, bytes(512)) == OK
        os.kill(web["pid"], signal.SIGKILL)
        front_end.resume(web["sockets"][0])
        assert all(done.status == OK for done in disk.wait(*heads))
    found = image.read_bytes()
    assert [found[n * 4096] for n in range(8)] == list(range(1, 9))
    view = host.call("GET", "/v1/exports/web")
    assert view["restarts"] == 1
    assert view["pid"] != web["pid"]


def test_nobody_is_refused_a_connection_while_an_export_is_dead(host, web):
    over, refused, count = threading.Event(), [], [0]

    def connect():
        while not over.is_set():
            with socket.socket(socket.AF_UNIX) as sock:
                # Python's own limit would not wait for a place among those that wait.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@qq", 10, 0))
                try:
                    sock.connect(web["sockets"][0])
                except OSError as error:
                    refused.append(error)
            count[0] += 1

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        pid = web["pid"]
        for _ in range(3):
            host.call("POST", "/v1/exports/web/kill")
            wait_for(lambda pid=pid: host.exports()[0]["pid"] not in {None, pid})
            pid = in_state(host, "web", "serving")["pid"]
    finally:
        over.set()
        thread.join()
    assert refused == []
    assert count[0] > 10


def test_who_asks_a_process_that_dies_is_not_kept_waiting(host, web):
    os.kill(web["pid"], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as executor:
        asking = executor.submit(host.call, "GET", "/v1/exports/web/stats")
        wait_for(lambda: has_caller(host.run / "exports" / "web" / "control.sock"))
        began = time.monotonic()
        os.kill(web["pid"], signal.SIGKILL)
        with pytest.raises(Refused, match="has ended meanwhile"):
            asking.result()
    assert time.monotonic() - began < 5


def has_caller(path):
    """Whether somebody has connected who is not accepted yet."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {path}") for line in lines) > 1


def test_one_that_cannot_be_served_again_fails_with_the_reason(host, web):
    (host.images / "web.img").unlink()
    os.kill(web["pid"], signal.SIGKILL)
    view = in_state(host, "web", "failed")
    assert "No such file" in view["reason"]
    assert view["wanted"] == "serving"
    told = host.stream("/v1/events?since=0&follow=false")
    assert '"export failed"' in told
    host.image("web.img", SIZE)
    assert host.call("POST", "/v1/exports/web/start")["state"] == "serving"


def test_what_was_stopped_stays_so_until_it_is_started(host, web):
    assert host.call("POST", "/v1/exports/web/stop")["state"] == "stopped"
    assert has_ended(web["pid"])
    assert not (host.run / "web.sock").exists()
    for call in ("pause", "resume", "kill", "resize"):
        body = {"size": SIZE} if call == "resize" else {}
        kind, detail = refusal(host, "POST", f"/v1/exports/web/{call}", body)
        assert (kind, "is stopped" in detail) == ("request-refused", True)
    assert host.call("POST", "/v1/exports/web/stop")["state"] == "stopped"
    assert host.call("POST", "/v1/exports/web/start")["state"] == "serving"


@pytest.mark.usefixtures("web")
def test_a_disk_grows_and_is_as_large_after_a_restart(host):
    assert host.call("POST", "/v1/exports/web/resize", {"size": 2 * SIZE})["size"] == 2 * SIZE
    host.call("POST", "/v1/exports/web/stop")
    host.call("POST", "/v1/exports/web/start")
    assert host.call("GET", "/v1/exports/web")["served"]["size"] == 2 * SIZE


# ---- changed ----


@pytest.mark.usefixtures("web")
def test_a_change_is_served_at_the_next_start(host):
    changed = host.call("PATCH", "/v1/exports/web", {"settings": {"cache": "writeback"}})
    assert (changed["applied"], changed["at_next_start"]) == ([], ["cache"])
    assert changed["export"]["pending"] == ["cache"]
    assert host.call("GET", "/v1/exports/web")["served"]["cache"] == "none"
    host.call("POST", "/v1/exports/web/stop")
    view = host.call("POST", "/v1/exports/web/start")
    assert (view["served"]["cache"], view["pending"]) == ("writeback", [])
    host.call("PATCH", "/v1/exports/web", {"settings": {"cache": "none"}})
    host.call("POST", "/v1/exports/web/stop")
    assert host.call("POST", "/v1/exports/web/start")["served"]["cache"] == "none"


def test_null_means_the_default(host):
    host.add("web", host.image("web.img", SIZE), read_only=True, queues=2)
    settings = {"read_only": None, "queues": None, "cpus": None}
    changed = host.call("PATCH", "/v1/exports/web", {"settings": settings})
    assert changed["at_next_start"] == ["queues", "read_only"]
    assert list(changed["export"]["settings"]) == ["image"]
    host.call("POST", "/v1/exports/web/stop")
    served = host.call("POST", "/v1/exports/web/start")["served"]
    assert (served["read_only"], served["queues"]) == (False, 4)


def test_who_may_connect_changes_at_once(host, web):
    settings = {"socket_mode": "0666", "socket_group": "65534"}
    changed = host.call("PATCH", "/v1/exports/web", {"settings": settings})
    assert changed["applied"] == ["socket_group", "socket_mode"]
    status = Path(web["sockets"][0]).stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o666, 65534)


@pytest.mark.parametrize(
    "settings",
    [
        {"queues": 0},
        {"colour": 1},
        {"image": None},
        {"colour": None},
        {"features": "old"},
        {"name": "x"},
    ],
)
@pytest.mark.usefixtures("web")
def test_a_change_to_what_cannot_be_is_refused_whole(host, settings):
    before = record_of(host, "web").read_bytes()
    body = {"settings": {"cache": "writeback", **settings}}
    assert refusal(host, "PATCH", "/v1/exports/web", body)[0] == "config-error"
    assert record_of(host, "web").read_bytes() == before


def test_what_a_guest_sees_is_pinned_until_the_newest_is_wanted(host, web):
    record = record_of(host, "web").read_text()
    host.call("POST", "/v1/exports/web/stop")
    assert 'features_as = "0.2"' in record
    assert "max_discard_segments = 32" in record
    host.call("PATCH", "/v1/exports/web", {"settings": {"features": "latest"}})
    assert "features_as" not in record_of(host, "web").read_text()
    serial = web["served"]["serial"]
    assert host.call("POST", "/v1/exports/web/start")["served"]["serial"] == serial
    assert record_of(host, "web").read_text() == record


# ---- records ----


def test_a_record_that_is_none_is_shown_and_left_alone(tmp_path):
    (records := tmp_path / "state" / "exports").mkdir(parents=True)
    (records / "torn.toml").write_text('version = 1\nname = "torn"\ndev')
    with HostDaemon(tmp_path) as host:
        host.ready()
        host.add("web", host.image("web.img", SIZE))
        web, torn = sorted(host.exports(), key=lambda export: export["state"] == "failed")
        assert (web["state"], torn["name"], torn["state"]) == ("serving", "torn", "failed")
        assert torn["reason"].startswith(f"{records}/torn.toml:3: is torn")
        body = {"name": "torn", "settings": {"image": str(host.images / "web.img")}}
        assert refusal(host, "POST", "/v1/exports", body)[0] == "export-exists"
        for call in ("start", "stop", "kill"):
            assert refusal(host, "POST", f"/v1/exports/torn/{call}")[0] == "request-refused"
        assert refusal(host, "DELETE", "/v1/exports/torn")[0] == "request-refused"
    assert (records / "torn.toml").read_text().endswith("\ndev")


@pytest.mark.usefixtures("web")
def test_a_record_that_somebody_has_edited_meanwhile_is_not_overwritten(host):
    record = record_of(host, "web")
    edited = record.read_text().replace("queues = 4", "queues = 2")
    record.write_text(edited)
    body = {"settings": {"cache": "writeback"}}
    kind, detail = refusal(host, "PATCH", "/v1/exports/web", body)
    assert (kind, "was written by somebody else" in detail) == ("state-error", True)
    assert record.read_text() == edited
    record.write_text(edited.replace("queues = 2", "queues = 4"))


def test_an_export_can_be_removed_where_there_is_no_room(tmp_path):
    with contextlib.ExitStack() as stack:
        state = tmp_path / "state"
        state.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", state]
        subprocess.run(mount, check=True)
        stack.callback(subprocess.run, ["umount", "-l", state], check=True)
        host = stack.enter_context(HostDaemon(tmp_path))
        host.ready()
        web = host.add("web", host.image("web.img", SIZE))
        with contextlib.suppress(OSError), (state / "rest").open("wb", buffering=0) as rest:
            while rest.write(bytes(4096)):
                pass
        assert refusal(host, "POST", "/v1/exports/web/stop")[0] == "state-error"
        assert host.call("GET", "/v1/exports/web")["pid"] == web["pid"]
        host.call("DELETE", "/v1/exports/web")
        assert (has_ended(web["pid"]), host.exports()) == (True, [])
        assert list(host.records.iterdir()) == []


# ---- daemons beside each other ----


def test_a_second_daemon_on_the_same_state_is_refused(host):
    done = run("daemon", "--config", host.config)
    assert done.returncode == 1
    assert f"another daemon has {host.folder / 'state'}" in done.stderr
    assert host.exports() == []


def test_a_second_daemon_on_the_same_sockets_is_refused_before_it_does_anything(
    host, web, tmp_path
):
    """Else it would adopt what the first one serves, of records that have the same names."""
    shutil.copytree(host.records, tmp_path / "state" / "exports")
    config = tmp_path / "blkd.toml"
    config.write_text(f'state = "state"\nrun = "{host.run}"\n')
    done = run("daemon", "--config", config)
    assert (done.returncode, f"another daemon has {host.run}" in done.stderr) == (1, True)
    assert "launcher started" not in done.stderr
    assert host.call("GET", "/v1/exports/web")["pid"] == web["pid"]


def test_a_second_daemon_lives_beside_the_first(host, web, tmp_path):
    with HostDaemon(tmp_path) as other:
        other.ready()
        second = other.add("web", other.image("web.img", SIZE))
        assert second["pid"] != web["pid"]
        os.kill(second["pid"], signal.SIGKILL)
        wait_for(lambda: other.exports()[0]["pid"] not in {None, second["pid"]})
        assert host.call("GET", "/v1/exports/web")["pid"] == web["pid"]


def test_wrong_settings_of_the_daemon_are_told_by_line(tmp_path):
    (config := tmp_path / "blkd.toml").write_text('state = "s"\nimage = "i"\n')
    done = run("daemon", "--config", config)
    assert done.returncode == 1
    assert f"{config}:2: " in done.stderr


@pytest.mark.usefixtures("web")
def test_the_log_of_an_export_outlives_its_process_and_stays_short(host):
    log = host.folder / "state" / "log" / "web.jsonl"
    line = b'{"event":"noise","export":"web","level":"info"}\n'
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for _ in range(3):
            file.write(line * (500_000 // len(line)))
            file.flush()
    wait_for(lambda: log.stat().st_size < 1 << 20)
    assert log.read_bytes().startswith(line)
    events = host.call("GET", "/v1/exports/web/logs?lines=2")["events"]
    assert [event["event"] for event in events] == ["noise", "noise"]


NOBODY = 65534
# It may read the Python of the tests, wherever that is, and has no other right.
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--"),
)


def test_an_export_that_cannot_log_is_served_all_the_same(host):
    log = host.folder / "state" / "log" / "mute.jsonl"
    log.mkdir()
    assert host.add("mute", host.image("mute.img", SIZE))["state"] == "serving"
    host.call("DELETE", "/v1/exports/mute")
    log.rmdir()


@pytest.fixture
def of_nobody():
    """A directory of that user; tmp_path is too long for the sockets of a daemon."""
    with tempfile.TemporaryDirectory(prefix="blkd-") as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


def test_a_user_may_have_a_daemon(of_nobody, tmp_path):
    web = make_image(of_nobody / "web.img", SIZE)
    os.chown(web, NOBODY, NOBODY)
    config = of_nobody / "blkd.toml"
    config.write_text('state = "state"\nrun = "run"\nimages = "."\n')
    command = ["/usr/bin/env", *AS_NOBODY, PROGRAMS / "blkd", "daemon", "--config", config]
    with Process([*command, "--json"], tmp_path / "log") as daemon:
        called = json.loads(daemon.line(20))["socket"]
        done = run("add", web, "--name", "web", "--json", "--daemon", called)
        assert done.returncode == 0, done.stderr + daemon.errors()
        added = json.loads(done.stdout)
        assert Path(f"/proc/{added['pid']}").stat().st_uid in {0, NOBODY}  # 0: it cannot be dumped
        with FrontEnd.connect(added["sockets"][0]) as front_end:
            assert front_end.disk().write(0, b"x" * 512) == OK
        assert run("rm", "web", "--daemon", called).returncode == 0
        daemon.end()


def test_a_socket_that_a_process_has_shut_down_is_made_anew(host, web):
    """The listening sockets are the daemon's and the process's alike: the latter may be hostile."""
    lent = lending.borrow(str(host.run / "exports/web/control.sock"))
    os.close(lent.statistics)
    os.close(lent.wake)
    for sock in lent.sockets:
        with sock:
            sock.shutdown(socket.SHUT_RDWR)
    os.kill(web["pid"], signal.SIGKILL)
    wait_for(lambda: host.call("GET", "/v1/exports/web")["pid"] not in {web["pid"], None})
    assert host.call("POST", "/v1/exports/web/start")["state"] == "serving"
    with FrontEnd.connect(web["sockets"][0]) as front_end:
        assert front_end.disk().write(0, b"x" * 512) == OK
