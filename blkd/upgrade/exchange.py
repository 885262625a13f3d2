# SPDX-License-Identifier: Apache-2.0
"""Who sends what, and when: the giver's and the taker's side of an upgrade.

What decides is `go`.  Before it, whatever goes wrong with either side or between them, the
giver serves on and the taker drops what it has; after it the giver touches nothing any more.
"""

from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

from blkd.errors import BlkdError, UpgradeError
from blkd.upgrade import messages
from blkd.upgrade.descriptors import IncomingFds, OutgoingFds

HELLO_LIMIT: Final = 5.0  # seconds that a taker has to say who it is
READY_LIMIT: Final = 60.0  # ... to prepare, while the disk is served
TAKEN_LIMIT: Final = 2.0  # ... to take, while it is not
STATE_LIMIT: Final = 10.0  # seconds that a giver has to come to rest

Kind = TypeVar("Kind", bound=messages.Document)


class Peer(Protocol):
    """The other process of an upgrade, which messages are sent to and received from."""

    async def send(self, document: messages.Document, fds: Sequence[int] = ()) -> None:
        """Send a document and descriptors, which are borrowed.  Raises UpgradeError."""

    async def receive(self, kind: type[Kind], limit: float | None) -> tuple[Kind, IncomingFds]:
        """The next document, of this kind, within `limit` seconds.  Raises UpgradeError."""

    def end_receiving(self, last: type[messages.Document]) -> bool:
        """Receive nothing more: whether a document of this kind has come that nobody received.

        What the other side sends from now on fails.
        """


class Giver(Protocol):
    """What a giver does to the disk that it serves."""

    def offer(self, hello: messages.Hello, out: OutgoingFds) -> messages.Offer:
        """Describe what is served, as far as the taker understands."""

    async def freeze(self, out: OutgoingFds) -> messages.State:
        """Come to rest and describe that.  Raises BlkdError where that cannot be now."""

    def require_undisturbed(self) -> None:
        """Raise BlkdError if the disk's rest has been disturbed."""

    async def thaw(self) -> None:
        """Serve on, if `freeze` was begun."""


class Taker(Protocol):
    """What a taker makes of what it is given.  Everything is hostile until it is checked."""

    async def prepare(self, offer: messages.Offer, fds: IncomingFds) -> None:
        """Get ready to take the state.  Raises BlkdError."""

    async def restore(self, state: messages.State, fds: IncomingFds) -> None:
        """Get ready to serve, and touch nothing.  Raises BlkdError."""


async def give(peer: Peer, disk: Giver, busy: str | None = None) -> messages.Hello:
    """Give `disk` away: to whom.  Once this has returned it may not be touched any more.

    Args:
        peer: The process that asks for it.
        disk: What is served.
        busy: Why that cannot be now, if it cannot.

    Raises:
        BlkdError: The taker has not got it; it is served on.
    """
    try:
        hello, _ = await peer.receive(messages.Hello, HELLO_LIMIT)
        if busy is not None:
            raise UpgradeError(busy)
        _require_common_format(hello)
        out = OutgoingFds()
        await peer.send(disk.offer(hello, out), out.fds)
        await peer.receive(messages.Ready, READY_LIMIT)
        await _give_state(peer, disk)
    except BlkdError as error:
        await refuse(peer, error)
        raise
    return hello


async def _give_state(peer: Peer, disk: Giver) -> None:
    try:
        out = OutgoingFds()
        await peer.send(await disk.freeze(out), out.fds)
        await peer.receive(messages.Taken, TAKEN_LIMIT)
        disk.require_undisturbed()
        await peer.send(messages.Go())
    except BaseException:
        await disk.thaw()
        raise


def _require_common_format(hello: messages.Hello) -> None:
    if messages.FORMAT not in hello.formats:
        known = ", ".join(map(str, hello.formats)) or "none"
        raise UpgradeError(
            f"version {hello.version} takes formats {known}, not {messages.FORMAT}",
            hint="stop the old process and start the new one instead",
        )


Offered = tuple[messages.Offer, IncomingFds]


async def ask(peer: Peer, hello: messages.Hello) -> Offered:
    """Ask for a disk: what is offered, for `take`.  Raises BlkdError: it is still the giver's."""
    try:
        await peer.send(hello)
        return await peer.receive(messages.Offer, HELLO_LIMIT)
    except BlkdError as error:
        await refuse(peer, error)
        raise


async def take(
    peer: Peer, disk: Taker, hello: messages.Hello, offered: Offered | None = None
) -> None:
    """Take a disk over: it may be touched once this has returned.

    What `ask` has returned may be given.

    Raises:
        BlkdError: It is still the giver's.  So it is where this is cancelled, but once `go` has
            come that is too late, and this returns.
    """
    try:
        offer, fds = offered or await ask(peer, hello)
        await disk.prepare(offer, fds)
        _require_all_taken(fds)
        await peer.send(messages.Ready())
        state, fds = await peer.receive(messages.State, STATE_LIMIT)
        await disk.restore(state, fds)
        _require_all_taken(fds)
        await peer.send(messages.Taken())
        await _await_go(peer)
    except BlkdError as error:
        await refuse(peer, error)
        raise


async def _await_go(peer: Peer) -> None:
    """Return once the giver has let go of the disk; raise only where it has not, and cannot now."""
    try:
        # Without a limit: only the giver may decide, or both might leave the disk.
        await peer.receive(messages.Go, None)
    except BaseException:
        if not peer.end_receiving(messages.Go):
            raise


def _require_all_taken(fds: IncomingFds) -> None:
    if len(fds):
        raise UpgradeError(f"{len(fds)} descriptors came that nothing names")


async def refuse(peer: Peer, error: BlkdError) -> None:
    """Tell the other side why, if it still listens."""
    reason = f"{error} ({error.hint})" if error.hint else str(error)
    try:
        await peer.send(messages.Refusal(reason=reason[: messages.MAX_TEXT]))
    except UpgradeError:
        return
