# SPDX-License-Identifier: Apache-2.0
"""A daemon that exists in a thread only, with figures that grow at each look."""

from contextlib import contextmanager

import msgspec

from blkd.statistics.figures import NamedFigures
from tests.doing_exports import DoingExports
from tests.scripted_daemon import Answer, ScriptedDaemon


@contextmanager
def daemon_with_figures(path, doing):
    """Play a daemon at `path`: the exports, of which what they do may be changed."""
    exports = DoingExports(doing)

    def figures(_call):
        named = [NamedFigures(name, each) for name, each in exports.look().items()]
        return Answer(msgspec.to_builtins({"exports": named}))

    def listed(_call):
        return Answer(msgspec.to_builtins({"exports": exports.list()}))

    with ScriptedDaemon(path) as daemon:
        daemon.on("GET", "/v1/figures", figures)
        daemon.on("GET", "/v1/exports", listed)
        yield exports
