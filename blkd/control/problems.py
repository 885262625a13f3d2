# SPDX-License-Identifier: Apache-2.0
"""What a caller of an API is told of a call that is refused: problem details (RFC 9457)."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from blkd import errors
from blkd.control.models import ABOUT_BLANK, PROBLEM_TYPES, Problem

STATUS: Final[Mapping[type[errors.BlkdError], HTTPStatus]] = MappingProxyType(
    {
        errors.ConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
        errors.ImageError: HTTPStatus.CONFLICT,
        errors.RequestRefused: HTTPStatus.CONFLICT,
        errors.SocketError: HTTPStatus.CONFLICT,
        errors.DrainTimeout: HTTPStatus.GATEWAY_TIMEOUT,
        errors.NoAnswer: HTTPStatus.GATEWAY_TIMEOUT,
        errors.NoSuchExport: HTTPStatus.NOT_FOUND,
        errors.NoSuchOperation: HTTPStatus.NOT_FOUND,
        errors.ExportExists: HTTPStatus.CONFLICT,
        errors.ExportChanged: HTTPStatus.PRECONDITION_FAILED,
        errors.NoSuchGroup: HTTPStatus.NOT_FOUND,
        errors.GroupExists: HTTPStatus.CONFLICT,
        errors.GroupChanged: HTTPStatus.PRECONDITION_FAILED,
        errors.BlkdError: HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)
"""By the kind of error, of which the first counts that an error's class has above it."""


def problem_of(error: errors.BlkdError) -> Problem:
    """The problem that tells of `error`: its kind, what was found, what can be done."""
    if isinstance(error, errors.ControlError) and error.status is not None:
        return _passed_on(error, error.status)
    kind = type(error).__name__
    words = re.findall("[A-Z][a-z]+", kind)
    return Problem(
        type=PROBLEM_TYPES + "-".join(words).lower(),
        title=" ".join(words).capitalize(),
        status=next(STATUS[base] for base in type(error).__mro__ if base in STATUS),
        detail=str(error),
        hint=error.hint,
    )


def _passed_on(error: errors.ControlError, status: int) -> Problem:
    """The problem that another API, which was asked for the caller, answered with."""
    return Problem(
        type=error.kind or ABOUT_BLANK,
        title=error.title or HTTPStatus(status).phrase,
        status=status,
        detail=str(error),
        hint=error.hint,
    )


def refusal(status: HTTPStatus, detail: str, *, hint: str | None = None) -> Problem:
    """The problem that HTTP itself has a name for."""
    return Problem(title=status.phrase, status=status, detail=detail, hint=hint)
