# SPDX-License-Identifier: Apache-2.0
"""The launcher: has imported what the process of an export needs, and forks it for each.

So a new export costs no start of Python, and shares with all others what they only read.  It has
one thread, for what a fork copies is the thread that calls it.  When its supervisor has gone it
lives on as long as it has children: it is their parent.
"""

import collections
import contextlib
import gc
import os
import select
import socket
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import structlog

from blkd.daemon import child, orders
from blkd.errors import LaunchError
from blkd.host import confinement
from blkd.host import log as log_events
from blkd.host.fds import ancillary_bytes, passed
from blkd.image.opener import OpenerPeer
from blkd.image.raw import open_again

log = structlog.get_logger()

TROUBLE: Final = select.POLLERR | select.POLLHUP | select.POLLNVAL


class _Launcher:
    """Orders carried out, and ends reported."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._supervisor: socket.socket | None = supervisor
        self._is_obeying = True
        self._reports: collections.deque[tuple[bytes, int]] = collections.deque()
        """What is to be sent, each with a descriptor of ours or -1."""
        self._children: dict[int, int] = {}
        """The pid behind each pidfd."""
        self._openers: dict[int, OpenerPeer] = {}
        """Whom the process of a disk asks to open its image once more, by descriptor."""
        self._answering: dict[int, tuple[int, OpenerPeer]] = {}
        """The pid behind each pidfd of a process that does so, and for whom."""
        self._poll = select.poll()  # no epoll: its descriptor would be in every child
        self._poll.register(supervisor, select.POLLIN)

    def run(self) -> None:
        """Return once there is nobody to obey, no child any more and nothing to report."""
        while self._is_obeying or self._children or self._reports:
            # Without a limit: there is nothing to do but what these announce.
            for fd, events in self._poll.poll():
                if fd in self._children:
                    self._bury(fd)
                elif fd in self._openers:
                    self._serve_opener(self._openers[fd], events)
                elif fd in self._answering:
                    self._end_answer(fd)
                elif self._supervisor is not None and fd == self._supervisor.fileno():
                    self._converse(self._supervisor, events)

    def _converse(self, supervisor: socket.socket, events: int) -> None:
        try:
            if events & select.POLLOUT:
                self._send_reports(supervisor)
            if events & TROUBLE and not self._is_obeying:
                self._leave(supervisor)
            elif events & (select.POLLIN | TROUBLE):
                self._obey(supervisor)
        except BlockingIOError:
            return
        except OSError:  # it has gone
            self._leave(supervisor)
        except LaunchError as error:
            log.error("order refused", reason=str(error), hint="end this launcher's exports")  # noqa: TRY400
            log_events.write_kept()
            self._leave(supervisor)

    def _leave(self, supervisor: socket.socket) -> None:
        """Go on without a supervisor."""
        self._poll.unregister(supervisor)
        supervisor.close()
        self._supervisor = None
        self._is_obeying = False
        for _, fd in self._reports:
            _close([fd])
        self._reports.clear()

    def _obey(self, supervisor: socket.socket) -> None:
        """Carry out one order.

        Raises LaunchError on what is none, OSError where the supervisor has gone.
        """
        data, ancillary, flags, _ = supervisor.recvmsg(
            orders.MAX_DOCUMENT, ancillary_bytes(orders.MAX_FDS), socket.MSG_CMSG_CLOEXEC
        )
        fds = list(passed(ancillary))
        try:
            if not data:  # it has ended, or only has no more to order
                self._is_obeying = False
                self._listen_to(supervisor)
                return
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise LaunchError("an order is too long, or has more descriptors than fit")
            self._start(orders.decode_order(data, fds), fds)
        finally:
            _close(fds)

    def _start(self, order: orders.Order, fds: Sequence[int]) -> None:
        ours, theirs = _opening_for(order)
        try:
            pid = confinement.fork_apart()[0] if order.sandbox.on else os.fork()
        except OSError as error:
            self._report(orders.Refused(f"no process can be started: {error.strerror}"))
            return
        if pid == 0:
            child.run(order, fds, theirs)
        if ours is not None and theirs is not None:
            theirs.close()
            peer = OpenerPeer(ours, open_again)
            self._openers[peer.fileno()] = peer
            self._poll.register(peer, select.POLLIN)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self._report(orders.Started(pid), os.dup(pidfd))

    def _bury(self, pidfd: int) -> None:
        """Take note of the end of a child."""
        pid, status = os.waitpid(self._children[pidfd], os.WNOHANG)
        if pid == 0:
            return
        self._poll.unregister(pidfd)
        del self._children[pidfd]
        os.close(pidfd)
        self._report(orders.Ended(pid, status))

    def _serve_opener(self, peer: OpenerPeer, events: int) -> None:
        """See to what the process of a disk asks for; one question at a time.

        Only what it says first, of its image, is taken here: what comes later may be hostile, and
        even to close a descriptor that came along may last for ever.
        """
        if events & TROUBLE:  # it has ended
            self._poll.unregister(peer)
            self._forget_opener(peer)
            return
        if not peer.is_ready:
            self._take_image(peer)
            return
        try:
            pid = os.fork()  # whoever asks a file system may wait for it for ever
        except OSError:
            return  # it asks in vain
        if pid == 0:
            self._answer(peer)
        pidfd = os.pidfd_open(pid)
        self._answering[pidfd] = pid, peer
        self._poll.register(pidfd, select.POLLIN)
        self._poll.unregister(peer)

    def _take_image(self, peer: OpenerPeer) -> None:
        try:
            peer.receive()
        except OSError:  # it is to have no answer
            self._poll.unregister(peer)
            self._forget_opener(peer)

    def _forget_opener(self, peer: OpenerPeer) -> None:
        """Answer a process no more."""
        del self._openers[peer.fileno()]
        peer.close()

    def _answer(self, peer: OpenerPeer) -> NoReturn:
        """Answer in this process, which was forked for it, and end."""
        status = 1
        try:
            if self._supervisor is not None:
                os.close(self._supervisor.fileno())  # that of the launcher is to be the last
            if request := peer.receive():
                peer.answer(request)
            status = 0
        finally:
            os._exit(status)

    def _end_answer(self, pidfd: int) -> None:
        """Take the next question of who has got its answer; of one that broke the rules, none."""
        pid, peer = self._answering[pidfd]
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended == 0:
            return
        self._poll.unregister(pidfd)
        del self._answering[pidfd]
        os.close(pidfd)
        if status == 0:
            self._poll.register(peer, select.POLLIN)
        else:
            self._forget_opener(peer)

    def _report(self, report: orders.Report, fd: int = -1) -> None:
        """Have a report sent; `fd` is taken."""
        if self._supervisor is None:
            _close([fd])
            return
        self._reports.append((orders.encode(report), fd))
        self._listen_to(self._supervisor)

    def _send_reports(self, supervisor: socket.socket) -> None:
        while self._reports:
            data, fd = self._reports[0]
            socket.send_fds(supervisor, [data], [fd] if fd >= 0 else [])
            self._reports.popleft()
            _close([fd])
        self._listen_to(supervisor)

    def _listen_to(self, supervisor: socket.socket) -> None:
        """Wait for what it is to say, and for what it is to take."""
        orders_due = select.POLLIN if self._is_obeying else 0
        self._poll.modify(supervisor, orders_due | (select.POLLOUT if self._reports else 0))


def _opening_for(order: orders.Order) -> tuple[socket.socket, socket.socket] | tuple[None, None]:
    """The ends of the socket on which the process of a disk asks for its image; ours first."""
    has_image = isinstance(order, orders.Take) or order.device == "blk"
    if not (order.sandbox.on and has_image):
        return None, None
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def main() -> None:
    """Carry out the orders that come on the descriptor that is the first argument."""
    supervisor = socket.socket(fileno=int(sys.argv[1]))
    supervisor.set_inheritable(False)
    supervisor.setblocking(False)
    log_events.configure(json=True)
    log_events.hold()  # a second thread would not be there in the children
    child.preload()
    # What is there by now is there for good, and a look at it would copy it into each child.
    gc.collect()
    gc.freeze()
    _Launcher(supervisor).run()


if __name__ == "__main__":
    main()
