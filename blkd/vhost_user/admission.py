# SPDX-License-Identifier: Apache-2.0
"""From a message to a session's plan for it, and from what became of that to the reply.

What holds for every request is here, by the declarations of `requests`; what one request does is
the session's method of that name.
"""

from collections.abc import Generator
from typing import cast

from blkd.errors import ProtocolError, RequestRefused
from blkd.vhost_user.requests import NOT_ZERO, REQUESTS, Declaration, Support, declared
from blkd.vhost_user.session import DONE, Answer, Handler, Plan, Session
from blkd.vhost_user.wire import Header, ProtocolFeature, Request, reply


def admit(session: Session, header: Header, payload: bytes, fd_count: int) -> Plan:
    """Check a request that came with `fd_count` descriptors, and plan it.

    The plan raises, when it is begun or between its commands:

    Raises:
        ProtocolError: The message is malformed: the connection cannot go on.
        RequestRefused: It cannot be granted: `refused` has the reply.
    """
    request, declaration = declared(header)
    if declaration.support not in {Support.YES, Support.OF_DEVICE}:
        raise RequestRefused(f"{request.name}: {declaration.note}")
    try:
        content = declaration.payload.decode(payload)
    except ProtocolError as error:
        raise ProtocolError(f"{request.name}: {error}") from error
    if not declaration.fds.allow(content, fd_count):
        raise ProtocolError(f"{request.name}: {fd_count} descriptors, not {declaration.fds.text}")
    if declaration.needs is not None and not session.may_rely_on(declaration.needs):
        raise RequestRefused(f"{request.name}: {declaration.needs.name} is not negotiated")
    handler = cast("Handler", getattr(session, request.name.lower()))
    outcome = handler(content)
    return (yield from outcome) if isinstance(outcome, Generator) else outcome


def accepted(session: Session, header: Header, answer: Answer | None) -> bytes | None:
    """The whole reply to a request that was carried out; None where none is due."""
    if answer is None and not _owes_acknowledgement(session, header):
        return None
    return reply(header.request, (answer or DONE).encode())


def refused(session: Session, header: Header, error: RequestRefused) -> bytes:
    """The whole reply to a request that was refused.

    Raises ProtocolError where no reply can say so: a front end that does not learn of the refusal
    would go on with a state that we do not have.
    """
    declaration = REQUESTS.get(cast("Request", header.request), Declaration())
    refusal = declaration.refusal
    if not declaration.replies and _owes_acknowledgement(session, header):
        refusal = NOT_ZERO
    if refusal is None:
        raise ProtocolError(str(error), hint=error.hint) from error
    return reply(header.request, refusal)


def _owes_acknowledgement(session: Session, header: Header) -> bool:
    """Whether the front end waits for a reply to a request that has none of its own."""
    return header.needs_reply and session.has_negotiated(ProtocolFeature.REPLY_ACK)
