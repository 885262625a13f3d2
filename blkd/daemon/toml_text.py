# SPDX-License-Identifier: Apache-2.0
"""TOML that people may have written: read into a model, with the line of what is wrong."""

import re
import tomllib
from typing import Any, Final, TypeVar

import msgspec

from blkd.errors import ConfigError

Model = TypeVar("Model", bound=msgspec.Struct)

SYNTAX_LINE: Final = re.compile(r"\(at line (\d+), column \d+\)")
"""What tomllib says of the place; at the end of the text it says that instead."""
UNKNOWN_FIELD: Final = re.compile(r"unknown field `([^`]*)`")
PLACE: Final = re.compile(r"at `\$(?:\.([\w-]+))?(?:\.([\w-]+))?")
"""Where msgspec has found something: a key, or a table and a key of it."""
TABLE: Final = re.compile(r"\s*\[\s*([\w-]+)\s*\]")
KEY: Final = re.compile(r"""\s*["']?([\w-]+)["']?\s*=""")


def read(content: bytes, where: str, model: type[Model]) -> Model:
    """The `model` that a TOML file says.

    Args:
        content: The whole file.
        where: Its path, for errors.
        model: A msgspec.Struct.

    Raises ConfigError with path and line.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}:{line}: is no UTF-8") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = SYNTAX_LINE.search(str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise ConfigError(f"{where}:{line}: is no TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{where}:1: is no TOML of ours: it is nested too deeply") from None
    return convert(document, text, where, model)


def require_end(content: bytes, where: str, end: str) -> None:
    """Raise ConfigError on a file that does not end with the line `end`: it is torn."""
    if not content.endswith(b"\n" + end.encode()):
        line = content.count(b"\n") + 1
        raise ConfigError(f"{where}:{line}: is torn: its last line is not {end.strip()!r}")


def convert(document: dict[str, Any], text: str, where: str, model: type[Model]) -> Model:
    """The `model` that the document of a TOML text is.  Raises ConfigError with the line."""
    try:
        return msgspec.convert(document, model)
    except msgspec.ValidationError as error:
        line = line_of(text, *_place(str(error)))
        raise ConfigError(f"{where}:{line}: {error}") from error


def line_of(text: str, *keys: str) -> int:
    """The line of a key, or of a key in a table; 1 where there is none."""
    table, wanted, found = "", list(keys), 1
    for number, line in enumerate(text.splitlines(), 1):
        if match := TABLE.match(line):
            table = match[1]
            if [table] == wanted[:1]:
                found = number
        elif (match := KEY.match(line)) and [*filter(None, [table]), match[1]] == wanted:
            return number
    return found


def _place(message: str) -> list[str]:
    """The keys that lead to what a message of msgspec is about."""
    found = PLACE.search(message)
    keys = [key for key in found.groups() if key] if found else []
    if unknown := UNKNOWN_FIELD.search(message):
        keys.append(unknown[1])
    return keys
