# SPDX-License-Identifier: Apache-2.0
"""Who may see the dashboard: pure checks of what a browser sends.

Three kinds of others are to be kept out: users of this host without the token, pages of the web
whose name was made to mean 127.0.0.1, and pages of other sites that send a request in the name of
the one who has logged in.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from blkd.daemon.loopback import names_loopback

SIGNED: Final = b"blkd dashboard: has shown the token"
NAMED: Final = b"blkd dashboard: the name of the cookie"
NAME_DIGITS: Final = 8
FROM_HERE: Final = frozenset({"same-origin", "none"})
"""What `Sec-Fetch-Site` says of requests that no other site has begun."""


@dataclass(frozen=True, slots=True)
class Key:
    """What opens the dashboard."""

    token: str

    @property
    def cookie(self) -> str:
        """What a browser keeps that has shown the token; it does not tell the token."""
        return self._signature(SIGNED)

    @property
    def cookie_name(self) -> str:
        """Of this daemon alone: a browser sends cookies to every port of a host."""
        return f"blkd-{self._signature(NAMED)[:NAME_DIGITS]}"

    def opens(self, offered: str) -> bool:
        """Whether that is the token; how long this takes does not tell how much of it is right."""
        return _are_same(offered, self.token)

    def admits(self, cookie: str) -> bool:
        """Whether that is the cookie, likewise."""
        return _are_same(cookie, self.cookie)

    def _signature(self, text: bytes) -> str:
        return hmac.new(self.token.encode(), text, hashlib.sha256).hexdigest()


def _are_same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())


def flaw(method: str, headers: Mapping[str, str]) -> str | None:
    """Why a request is not answered, whoever it is from; None where nothing is wrong with it."""
    host = headers.get("Host", "")
    if not names_loopback(host):
        return "this is not the host that was asked for"
    if method in {"GET", "HEAD"}:
        return None
    if headers.get("Sec-Fetch-Site", "none") not in FROM_HERE:
        return "another site has sent this"
    if headers.get("Origin", f"http://{host}") != f"http://{host}":
        return "a page of another origin has sent this"
    return None
