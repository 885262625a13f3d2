# SPDX-License-Identifier: Apache-2.0
"""A setting, as one field of a model declares it.

The field's type has the limits, its default the default; `Option` beside the type has the
rest.  The options of the command line and the tables of the documents are made from this.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect

UNSET = (None, "", ())
"""Defaults that stand for "not given": the text of the option says what that means."""


@dataclass(frozen=True, slots=True)
class Option:
    """How people write a setting; stands in the field's `Annotated[...]`."""

    text: str
    """What it is for, as a sentence: the help of the command line and of the documents."""
    flag: str | None = None
    """None for the field's name: `--queue-size`, or `--no-discard` where True is the default."""
    metavar: str | None = None
    """What stands for the value in the help; None where its type says it."""
    required: bool = False
    """Whether the command line must have it although the model has a default."""
    read: Callable[[str], object] | None = None
    """Makes the value of a text, or raises ConfigError; None where click knows how."""
    write: Callable[[Any], str] = str
    """Makes the text of a value."""
    is_repeated: bool = False
    """Whether it may be given several times: `read` makes one item of the field's tuple of each."""
    of_daemon: bool = False
    """Whether it is for exports of a daemon only: one that is served without has nobody for it."""
    rule: Callable[[Any], None] | None = None
    """Raises ConfigError on a value of the right type that is not allowed all the same."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a model, with its option."""

    field: str
    type: inspect.Type
    """Without the None that stands for "not given"."""
    default: object
    """None too where the model has no default."""
    option: Option

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        words = self.field.replace("_", "-")
        return self.option.flag or (f"--no-{words}" if self.default is True else f"--{words}")

    @property
    def default_text(self) -> str | None:
        """The default as people write it; None for a switch, or if nothing is written."""
        if self.default in UNSET or isinstance(self.default, bool):
            return None
        return self.option.write(self.default)

    def check(self, value: object) -> None:
        """Raise ConfigError if `value` breaks the setting's rule."""
        if self.option.rule is not None and value not in UNSET:
            self.option.rule(value)


@functools.cache
def settings_of(model: type[msgspec.Struct]) -> tuple[Setting, ...]:
    """The fields of `model` that have an `Option`: the required ones, then the others."""
    info = inspect.type_info(model)
    assert isinstance(info, inspect.StructType)
    hints = get_type_hints(model, include_extras=True)
    settings = [
        Setting(field.name, _without_none(field.type), _default(field), option)
        for field in info.fields
        for option in getattr(hints[field.name], "__metadata__", ())
        if isinstance(option, Option)
    ]
    return tuple(sorted(settings, key=lambda setting: not setting.option.required))


def _default(field: inspect.Field) -> object:
    return None if field.default is msgspec.NODEFAULT else field.default


def _without_none(kind: inspect.Type) -> inspect.Type:
    """The type of a value that is given, of a field that may be None."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    (given,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
    return given
