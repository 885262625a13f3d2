# SPDX-License-Identifier: Apache-2.0
"""The settings of what is served as options of the command line, made from a model's fields."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
from msgspec import inspect

from blkd.errors import ConfigError
from blkd.export.config import ExportConfig
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.option import Setting, settings_of

Command = TypeVar("Command", bound=Callable[..., object])


def export_options(model: type[EndpointConfig]) -> Callable[[Command], Command]:
    """Add an option for each setting of a model; the command is passed the fields by name."""

    def add(command: Command) -> Command:
        for setting in reversed(settings_of(model)):
            command = _option(setting, setting.option.text)(command)
        return command

    return add


def export_option(field: str, text: str) -> Callable[[Command], Command]:
    """The option of one field with a help text of its own, for a command that does not serve."""
    (setting,) = (each for each in settings_of(ExportConfig) if each.field == field)
    return _option(setting, text)


def _option(setting: Setting, text: str) -> Callable[[Command], Command]:
    kind, value_of = _reading(setting)
    # Only what is given: click takes None and False for a choice that was made.
    given: dict[str, Any] = {}
    if kind is click.BOOL:
        given["is_flag"] = True
    if setting.default_text is not None:
        given["default"] = setting.default_text

    if is_repeated := setting.option.is_repeated:
        given["multiple"] = True

    def checked(_ctx: click.Context, _param: click.Parameter, written: Any) -> object:
        if written is None:
            return setting.default
        try:
            value = tuple(map(value_of, written)) if is_repeated else value_of(written)
            setting.check(value)
        except ConfigError as error:
            raise click.BadParameter(str(error)) from error
        return value

    return click.option(
        setting.flag,
        setting.field,
        type=kind,
        callback=checked,
        required=setting.option.required,
        metavar=setting.option.metavar,
        show_default=True,
        help=text,
        **given,
    )


def _reading(setting: Setting) -> tuple["click.ParamType[Any]", Callable[[Any], object]]:
    """What click accepts for a setting, and what makes the setting's value of that."""
    if setting.option.read is not None:
        return click.STRING, setting.option.read
    match setting.type:
        case inspect.BoolType():
            return click.BOOL, lambda is_on: is_on is not setting.default
        case inspect.IntType(ge=least, le=most):
            return click.IntRange(least, most), int
        case inspect.LiteralType(values=values):
            words = {str(value): value for value in values}
            return click.Choice(list(words)), words.__getitem__
        case inspect.StrType():
            return click.STRING, str
    raise NotImplementedError(f"{setting.field} needs an Option with a read()")
