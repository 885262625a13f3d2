# SPDX-License-Identifier: Apache-2.0
"""The settings of what is served as options of the command line, made from a model's fields."""

from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

import click
from msgspec import inspect

from blkd.daemon.plain_settings import NOT_SET, plain_value
from blkd.errors import ConfigError
from blkd.export.config import ExportConfig
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.option import Setting, settings_of

Command = TypeVar("Command", bound=Callable[..., object])


def export_options(model: type[EndpointConfig]) -> Callable[[Command], Command]:
    """Add an option for each setting of a model; the command is passed the fields by name."""

    def add(command: Command) -> Command:
        for setting in reversed(served_settings(model)):
            command = _option(setting, setting.option.text, required=setting.option.required)(
                command
            )
        for setting in settings_of(model):
            if setting.option.of_daemon:
                command = _refused(setting)(command)
        return command

    return add


def daemon_options(
    model: type[EndpointConfig], texts: Mapping[str, str], required: Container[str]
) -> Callable[[Command], Command]:
    """Add an option for each setting that an export of the daemon may have.

    Args:
        model: The settings.
        texts: Help texts that differ from those of the command that serves, by field.
        required: The fields that must be given.
    """

    def add(command: Command) -> Command:
        for setting in reversed(managed_settings(model)):
            text = texts.get(setting.field, setting.option.text)
            command = _option(setting, text, required=setting.field in required)(command)
        return command

    return add


def served_settings(model: type[EndpointConfig]) -> tuple[Setting, ...]:
    """The settings that what is served without a daemon may have."""
    return tuple(each for each in settings_of(model) if not each.option.of_daemon)


def managed_settings(model: type[EndpointConfig]) -> tuple[Setting, ...]:
    """The settings that an export of the daemon may have, but for its image."""
    return tuple(each for each in settings_of(model) if each.field not in NOT_SET)


def read_value(setting: Setting, text: str) -> Any:
    """The plain value that a text means; None, the default, for an empty one.

    Raises:
        click.BadParameter: It means none.
        ConfigError: It is out of range.
    """
    if not text:
        return None
    kind, value_of = _reading(setting)
    if kind is click.BOOL:
        return kind.convert(text, None, None)
    value = value_of(kind.convert(text, None, None))
    if setting.option.is_repeated:
        value = (value,)
    setting.check(value)
    return plain_value(setting, value)


def export_option(field: str, text: str) -> Callable[[Command], Command]:
    """The option of one field with a help text of its own, for a command that does not serve."""
    (setting,) = (each for each in settings_of(ExportConfig) if each.field == field)
    return _option(setting, text, required=setting.option.required)


def _refused(setting: Setting) -> Callable[[Command], Command]:
    """An option that is not shown, and says why it cannot be given."""

    def refuse(_ctx: click.Context, param: click.Parameter, text: str | None) -> None:
        if text is not None:
            raise click.BadParameter(
                "it is for exports of a daemon, which has the groups: see blkd add", param=param
            )

    return click.option(setting.flag, hidden=True, expose_value=False, callback=refuse)


def _option(setting: Setting, text: str, *, required: bool) -> Callable[[Command], Command]:
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
        required=required,
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
