# SPDX-License-Identifier: Apache-2.0
"""HTTP over a UNIX socket for `requests`, which schemathesis uses."""

import socket

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

LIMIT = 30  # seconds to connect


class UnixConnection(HTTPConnection):
    path: str

    def _new_conn(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LIMIT)
        sock.connect(self.path)
        return sock


class UnixAdapter(HTTPAdapter):
    """Sends every request to a UNIX socket."""

    def __init__(self, path):
        super().__init__()
        connection = type("Connection", (UnixConnection,), {"path": path})
        pool = type("Pool", (HTTPConnectionPool,), {"ConnectionCls": connection})
        self._pool = pool("blkd")

    def get_connection_with_tls_context(self, *_args, **_options):
        return self._pool
