# SPDX-License-Identifier: Apache-2.0
"""A process of an export that somebody else's code runs in: what that can do, and cannot.

`tests.attacker` is the process, confined and sealed as a launcher's child is, with a thread that
does what a test says; as root, who becomes another user, and as an ordinary user.
"""

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from blkd.control.client import call
from blkd.daemon import orders
from blkd.host import unix_socket
from harness.frontend import OK, FrontEnd

ROOT = Path(__file__).parents[2]
LIMIT = 20.0  # seconds
NOBODY = 65534
DYNAMIC = 61184  # the first of those that systemd gives to services for a while
SIZE = 1 << 20
BLOCK = bytes(range(256)) * 16
ORDINARY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


class Victim:
    """A disk, served by a process that an attacker has entered."""

    def __init__(self, directory, *, as_root):
        self.directory = directory
        self.image = directory / "disk.img"
        self.other = directory / "other.img"
        for path in (self.image, self.other):
            path.write_bytes(bytes(SIZE))
            os.chown(path, *(0, 0) if as_root else (NOBODY, NOBODY))
            path.chmod(0o600)
        self._sockets = [
            unix_socket.listen(str(directory / name), 0o600) for name in ("control", "front.sock")
        ]
        ready, said = os.pipe()
        self._ours, theirs = socket.socketpair()
        self._lines = self._ours.makefile("rw")
        order = orders.Launch(
            name="victim",
            device="blk",
            settings={"image": str(self.image), "queues": 2, "workers": 2},
            run=str(directory),
            sandbox=orders.Sandbox(user=DYNAMIC, group=DYNAMIC) if as_root else orders.Sandbox(),
        )
        self.log = directory / "log"
        with self.log.open("wb") as log:
            fds = [said, log.fileno(), *(s.fileno() for s in self._sockets), theirs.fileno()]
            self.process = subprocess.Popen(
                [
                    *([] if as_root else ORDINARY),
                    sys.executable,
                    "-m",
                    "tests.attacker",
                    orders.encode(order),
                    *map(str, fds),
                ],
                cwd=ROOT,
                pass_fds=fds,
                stdout=subprocess.PIPE,
                text=True,
            )
        os.close(said)
        theirs.close()
        with os.fdopen(ready, "rb") as outcome:
            assert select.select([outcome], [], [], LIMIT)[0], self.log.read_text()
            line = outcome.readline()
        assert line, self.log.read_text()
        self.said = json.loads(line)
        assert self.said["type"] == "ready", self.said
        self.pid = int(self.process.stdout.readline())

    def attack(self, name, argument=None):
        """The errno that it gets, None where it succeeds."""
        self._lines.write(json.dumps([name, argument]) + "\n")
        self._lines.flush()
        assert select.select([self._ours], [], [], LIMIT)[0], self.log.read_text()
        return json.loads(self._lines.readline())

    @property
    def show(self):
        return call(str(self.directory / "control"), "GET", "/v1/export")

    def assert_serves(self):
        with FrontEnd.connect(str(self.directory / "front.sock")) as front_end:
            disk = front_end.disk()
            front_end.get_inflight(2, 128)
            assert front_end.inflight
            assert disk.write(0, BLOCK) == OK
            assert disk.flush() == OK
            assert disk.read(0, len(BLOCK)) == (OK, BLOCK)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(LIMIT)
        self.process.stdout.close()
        for each in (self._lines, self._ours, *self._sockets):
            each.close()


@contextlib.contextmanager
def served(user):
    with tempfile.TemporaryDirectory(prefix="blkd-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        victim = Victim(directory, as_root=user == "root")
        try:
            yield victim
        finally:
            victim.close()


@pytest.fixture(scope="module", params=["root", "ordinary-user"])
def victim(request):
    with served(request.param) as found:
        yield found


@pytest.fixture(params=["root", "ordinary-user"])
def doomed(request):
    with served(request.param) as found:
        yield found


@pytest.fixture(scope="module")
def sibling():
    """Another process of the same users, to be looked into and signalled."""
    with contextlib.ExitStack() as stack:
        yield {
            user: stack.enter_context(
                subprocess.Popen([*command, "sleep", "1000"], stdout=subprocess.DEVNULL)
            )
            for user, command in (
                (DYNAMIC, ["setpriv", f"--reuid={DYNAMIC}", "--clear-groups"]),
                (NOBODY, ORDINARY),
            )
        }


@pytest.fixture(scope="module", autouse=True)
def siblings_end(sibling):
    yield
    for each in sibling.values():
        each.kill()


def test_all_is_in_force(victim):
    found = victim.show["sandbox"]
    as_root = found["user"] == DYNAMIC
    assert found["user"] in {DYNAMIC, NOBODY}
    assert not found["capabilities"]
    assert found["no_new_privs"]
    assert not found["dumpable"]
    assert found["landlock"] > 0
    assert found["seccomp"]
    assert found["io_uring_restricted"]
    assert {"mount", "net", "ipc", "uts"} <= set(found["namespaces"])
    assert found["limits"]["core"] == 0
    missing = {each["part"] for each in found["missing"]}
    assert missing == (set() if as_root else {"pid namespace"})
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{victim.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["Groups"].strip() == ""
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_its_own_threads_serve(victim):
    victim.assert_serves()
    assert victim.attack("thread") is None


REFUSED = {errno.EPERM, errno.EACCES}
UNSEEN = {*REFUSED, errno.ENOENT}


@pytest.mark.parametrize(
    ("attack", "argument", "expected"),
    [
        pytest.param("open_to_read", "/etc/shadow", UNSEEN, id="shadow"),
        pytest.param("open_to_read", "/etc/passwd", UNSEEN, id="passwd"),
        pytest.param("open_to_read", "{other}", UNSEEN, id="another-image"),
        pytest.param("open_to_read", "/", REFUSED, id="the-root"),
        pytest.param("open_to_read", "/proc/1/environ", UNSEEN, id="environment-of-init"),
        pytest.param("open_to_read", "/proc/{parent}/environ", UNSEEN, id="environment-of-parent"),
        pytest.param("open_to_write", "{image}", UNSEEN, id="its-image-by-path"),
        pytest.param("open_to_write", "/proc/self/oom_score_adj", REFUSED, id="proc"),
        pytest.param("open_to_write", "/proc/self/mem", REFUSED, id="its-code"),
        pytest.param("open_with_openat2", "/proc/self/status", {errno.EPERM}, id="openat2"),
        pytest.param("climb_out", "/etc/passwd", UNSEEN, id="climb-out"),
        pytest.param("open_own_image_again", None, REFUSED, id="its-image-again"),
        pytest.param("connect_unix", "{control}", REFUSED, id="unix-socket"),
        pytest.param("connect_tcp", "22", REFUSED, id="tcp"),
        pytest.param("connect_what_is_there", "{control}", UNSEEN, id="a-socket-that-is-there"),
        pytest.param("execute", None, REFUSED, id="run"),
        pytest.param("execute_here", None, REFUSED, id="execute"),
        pytest.param("fork", None, REFUSED, id="fork"),
        pytest.param("fork_by_clone", None, REFUSED, id="clone"),
        pytest.param("trace", "{sibling}", REFUSED, id="trace-sibling"),
        pytest.param("read_memory_of", "{sibling}", REFUSED, id="read-memory-of-sibling"),
        pytest.param("send_signal", "{sibling}", REFUSED, id="signal-sibling"),
        pytest.param("send_signal", "{parent}", REFUSED, id="signal-supervisor"),
        pytest.param("signal_all", None, REFUSED, id="signal-all"),
        pytest.param("signal_by_pidfd", "{parent}", REFUSED, id="signal-by-pidfd"),
        pytest.param("signal_by_io", "{parent}", REFUSED, id="signal-by-io"),
        pytest.param("make_io_uring", None, REFUSED, id="io-uring"),
        pytest.param("register_more_with_io_uring", None, REFUSED, id="registration"),
        pytest.param("fill_memory", None, {errno.ENOMEM}, id="memory"),
        pytest.param("fill_shared_memory", None, REFUSED, id="shared-memory"),
        pytest.param("fill_memory_file", None, REFUSED, id="memory-file"),
        pytest.param("execute_memory", None, REFUSED, id="code"),
        pytest.param("raise_limit", None, REFUSED, id="limit"),
        pytest.param("become_root", None, REFUSED, id="root"),
        pytest.param("unshare_user", None, REFUSED, id="user-namespace"),
        pytest.param("mount", None, REFUSED, id="mount"),
        pytest.param("seccomp_off", None, UNSEEN, id="profile"),
        pytest.param("by_number", "298", REFUSED, id="perf"),
        pytest.param("by_number", "321", REFUSED, id="bpf"),
        pytest.param("by_number", "323", REFUSED, id="userfaultfd"),
        pytest.param("by_number", "250", REFUSED, id="keyctl"),
        pytest.param("by_number", "175", REFUSED, id="kernel-module"),
    ],
)
def test_an_attack_is_refused(victim, sibling, attack, argument, expected):
    values = {
        "other": victim.other,
        "image": victim.image,
        "control": victim.directory / "control",
        "parent": victim.process.pid,
        "sibling": sibling[victim.show["sandbox"]["user"]].pid,
    }
    assert victim.attack(attack, argument and argument.format(**values)) in expected
    assert victim.process.poll() is None
    victim.assert_serves()


def test_nobody_else_was_touched(victim, sibling):
    assert all(each.poll() is None for each in sibling.values())
    assert victim.other.read_bytes() == bytes(SIZE)


def test_all_that_is_asked_of_a_disk_is_done(victim):
    control = str(victim.directory / "control")
    with FrontEnd.connect(str(victim.directory / "front.sock")) as front_end:
        disk = front_end.disk()
        assert disk.write(8, BLOCK) == OK
        call(control, "POST", "/v1/export/resize", {"size": 2 * SIZE})
        assert victim.image.stat().st_size == 2 * SIZE
        call(control, "POST", "/v1/export/pause", {})
        call(control, "POST", "/v1/export/resume")
        assert disk.read(8, len(BLOCK)) == (OK, BLOCK)
    victim.assert_serves()


@pytest.mark.parametrize("attack", ["die", "abort"])
def test_an_export_that_is_ended_ends_alone(doomed, sibling, attack):
    doomed.assert_serves()
    with contextlib.suppress(ValueError):
        doomed.attack(attack)  # its socket closes
    doomed.process.wait(LIMIT)  # which waits for it alone
    assert doomed.process.returncode == 0
    assert all(each.poll() is None for each in sibling.values())


def test_it_ends_in_good_order_at_a_signal(doomed):
    doomed.assert_serves()
    os.kill(doomed.pid, signal.SIGTERM)
    doomed.process.wait(LIMIT)
    assert '"stopping"' in doomed.log.read_text()
    assert "Traceback" not in doomed.log.read_text()


# ---- what the host lacks ----

CONFINED = """
import sys, threading
import msgspec
from blkd.errors import SandboxError
from blkd.host.confinement import confine, observe, seal
from blkd.host.sandbox_policy import Policy
msgspec.json.encode(observe())
if "threads" in sys.argv:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
policy = Policy(keep=frozenset(), required="required" in sys.argv)
try:
    found = seal(policy, confine(policy), io_uring_restricted=True)
except SandboxError as error:
    found = str(error)
print(msgspec.json.encode(found).decode(), flush=True)
"""
NO_NAMESPACES = """
echo 0 >/proc/sys/user/max_user_namespaces
exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@"
"""


def confined(*words, without_namespaces=False):
    """What a process says that confines itself."""
    command = [sys.executable, "-c", CONFINED, *words]
    if without_namespaces:
        command = [
            "unshare",
            "--user",
            "--map-root-user",
            "sh",
            "-c",
            NO_NAMESPACES,
            "sh",
            *command,
        ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_what_a_host_lacks_is_left_out_and_said():
    found = confined(without_namespaces=True)
    assert found["namespaces"] == []
    missing = {each["part"]: each["reason"] for each in found["missing"]}
    assert {"mount namespace", "net namespace", "ipc namespace", "uts namespace"} <= set(missing)
    assert "No space left" in missing["mount namespace"]  # for one more namespace of users
    assert found["landlock"] > 0
    assert found["seccomp"]
    assert not found["capabilities"]


def test_what_a_host_lacks_is_an_error_where_it_is_required():
    assert "the sandbox lacks its" in confined("required", without_namespaces=True)


def test_a_process_of_several_threads_is_not_confined():
    assert confined("threads") == "2 threads at the start of the sandbox: expected one"
