# SPDX-License-Identifier: Apache-2.0
"""Events to standard error: lines for people on a terminal, else one JSON object each.

`BLKD_LOG=debug` in the environment shows every message of the protocol as well.
"""

import contextlib
import logging
import os
import sys
from typing import Any

import msgspec
import structlog

STDERR = 2

_always: dict[str, str] = {}
"""What every event says."""


def configure(*, json: bool = False) -> None:
    """Send every event to standard error, as JSON if asked for or if nobody watches."""
    people = not json and sys.stderr.isatty()
    structlog.configure(
        processors=[
            _say_always,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not people),
            *(_for_people() if people else _for_programs()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level()),
        logger_factory=StandardError,
        cache_logger_on_first_use=True,
    )


def name_export(name: str) -> None:
    """Have every event name the export: a process has one."""
    _always["export"] = name


class StandardError:
    """Where events go.  That nobody reads them any more must not end the daemon."""

    def __init__(self, *_names: object) -> None:
        """Be made as structlog makes its loggers; names do not matter."""

    def msg(self, line: str) -> None:
        """Write `line` in one piece."""
        with contextlib.suppress(OSError):
            os.write(STDERR, line.encode(errors="replace") + b"\n")

    debug = info = warning = error = critical = exception = msg


def _say_always(_logger: Any, _method: str, event: Any) -> Any:
    return _always | event


def _for_people() -> list[Any]:
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]


def _for_programs() -> list[Any]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_to_json),
    ]


def _to_json(event: object, **_options: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def _level() -> int:
    return logging.DEBUG if os.environ.get("BLKD_LOG", "").lower() == "debug" else logging.INFO
