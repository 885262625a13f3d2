# SPDX-License-Identifier: Apache-2.0
"""Prints what blkd makes of vhost-user, from the declarations: `docs/protocol.md`'s first part.

python -m blkd.vhost_user.document
"""

import sys
from collections.abc import Iterable, Iterator, Mapping

from blkd.vhost_user.requests import (
    BACKEND_REQUESTS,
    MAX_MEM_SLOTS,
    MAX_PAYLOAD,
    PROTOCOL_FEATURES,
    REQUESTS,
    VIRTIO_FEATURES,
    Declaration,
    Stance,
)
from blkd.vhost_user.wire import MAX_CONFIG, MAX_FDS, ProtocolFeature, Unread, VirtioFeature

INTRODUCTION = f"""\
# What blkd makes of vhost-user

The tables up to the line "The block device" are printed by `python -m blkd.vhost_user.document`
from the declarations in `blkd/vhost_user/requests.py`; a test holds this page to them.
They cover the specification up to QEMU 10.2.

- *supported*: works whole.  *Not offered yet*: planned.  *Refused*: not planned.
  *n.a.*: means nothing to a block device.
- A request that is refused is answered with a non-zero number if the front end asked for an
  acknowledgement (REPLY_ACK and NEED_REPLY), or in the form its own reply has for that; the
  connection goes on.  Where no answer can say so, the connection ends: the front end would
  go on with a state that blkd does not have.  Requests of no specification count as refused.
- A malformed message ends the connection: another version, unknown flags, a wrong size, a wrong
  number of descriptors, more than {MAX_FDS} of them, more than {MAX_PAYLOAD} bytes, half a message.
- At most {MAX_MEM_SLOTS} memory regions; configuration accesses of at most {MAX_CONFIG} bytes.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a table."""
    titles = list(head)
    yield "| " + " | ".join(titles) + " |"
    yield "|" + " --- |" * len(titles)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def answer(declaration: Declaration) -> str:
    """How a request is answered, in words."""
    if not declaration.replies:
        return "acknowledgement, on demand"
    match declaration.refusal:
        case None:
            return "own reply"
        case b"":
            return "own reply, empty to refuse"
        case _:
            return "own reply, not 0 to refuse"


def request_rows() -> Iterator[tuple[str, ...]]:
    """One row for each request of a front end."""
    for request, declaration in REQUESTS.items():
        unread = declaration.payload is Unread
        yield (
            f"{request}",
            request.name,
            declaration.support.value,
            "" if unread else declaration.payload.__name__,
            "" if unread else declaration.fds.text,
            (declaration.needs.name or "") if declaration.needs is not None else "",
            answer(declaration),
            declaration.note,
        )


def feature_rows(
    stances: Mapping[ProtocolFeature, Stance] | Mapping[VirtioFeature, Stance],
) -> Iterator[tuple[str, ...]]:
    """One row for each feature bit."""
    for feature, stance in stances.items():
        bit = feature.bit_length() - 1
        yield f"{bit}", feature.name or "", stance.support.value, stance.note


def backend_rows() -> Iterator[tuple[str, ...]]:
    """One row for each request that a back end can make."""
    for request, stance in BACKEND_REQUESTS.items():
        yield f"{request}", request.name, stance.support.value, stance.note


def page() -> str:
    """The whole of it, as Markdown."""
    sections = (
        (
            "Requests of the front end",
            ("Id", "Request", "State", "Payload", "Descriptors", "Needs", "Answer", "Note"),
            request_rows(),
        ),
        ("Protocol features", ("Bit", "Feature", "State", "Note"), feature_rows(PROTOCOL_FEATURES)),
        (
            "Virtio features that belong to no one device",
            ("Bit", "Feature", "State", "Note"),
            feature_rows(VIRTIO_FEATURES),
        ),
        ("Requests of the back end", ("Id", "Request", "State", "Note"), backend_rows()),
    )
    lines = [INTRODUCTION]
    for title, head, rows in sections:
        lines += [f"## {title}\n", *table(head, rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
