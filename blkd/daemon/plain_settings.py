# SPDX-License-Identifier: Apache-2.0
"""Settings of exports as the API and the records have them: names of fields, and plain values.

They are those of the models that the command line has, `ExportConfig` and its like, in which a
setting is declared once.  A value is what JSON and TOML have in common: what people write as text
for want of a better type, as a mode in octal, is a string here too.
"""

from collections.abc import Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import inspect

from blkd.control.daemon_models import Device, Settings
from blkd.errors import ConfigError
from blkd.export.config import ExportConfig
from blkd.export.endpoint_config import EndpointConfig
from blkd.export.net_config import NetConfig
from blkd.export.option import Setting, settings_of
from blkd.export.vsock_config import VsockConfig

MODELS: Final[Mapping[Device, type[EndpointConfig]]] = MappingProxyType(
    {"blk": ExportConfig, "net": NetConfig, "vsock": VsockConfig}
)
NOT_SET: Final = frozenset({"name", "control", "control_group", "control_mode", "tap_fd"})
"""What the daemon gives an export itself, or what cannot be given to it by a call."""


def read_settings(device: Device, name: str, settings: Settings, run: PurePath) -> EndpointConfig:
    """The settings of an export in the model of its device.

    Args:
        device: What it is.
        name: What it is called.
        settings: Plain values; not changed.
        run: The directory of the sockets that are not among the settings.

    Raises:
        ConfigError: They are none of that device, or out of range.
    """
    for field in NOT_SET & settings.keys():
        raise ConfigError(f"{field} is no setting of an export of the daemon")
    for field, value in settings.items():
        _require_text_without_nul(field, value)
    model = MODELS[device]
    values = {
        field: _value(setting, settings[field]) if setting else settings[field]
        for field, setting in _by_field(model, settings)
    }
    values.setdefault("socket", _socket(device, name, settings, run))
    try:
        return msgspec.convert({**values, "name": name}, model)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the settings of {name} are no good: {error}") from error


def kept_settings(device: Device, name: str, settings: Settings) -> Settings:
    """The settings in the one way of writing them: without those that are the default.

    Raises ConfigError as `read_settings` does.
    """
    config = read_settings(device, name, settings, PurePath("/"))
    defaults = {field.name: field.default for field in msgspec.structs.fields(config)}
    return {
        field: plain_value(setting, value)
        for field, setting in _by_field(type(config), settings)
        if (value := getattr(config, field)) != defaults[field]
    }


def group_of(device: Device, settings: Settings) -> str | None:
    """The group whose limits an export shares, None for none, or for what is no name.

    A device of another kind has no limits; `group` of one for sockets is another thing.
    """
    group = settings.get("group")
    return group if device == "blk" and isinstance(group, str) else None


def settable(device: Device) -> frozenset[str]:
    """The names of the settings of a device."""
    return frozenset(MODELS[device].__struct_fields__) - NOT_SET


def is_text(setting: Setting) -> bool:
    """Whether the plain value is the text of the command line: its type is none of JSON's."""
    return setting.option.write is not str or isinstance(_item(setting), inspect.DataclassType)


def _require_text_without_nul(field: str, value: Any) -> None:
    """Raise ConfigError on a text, or one of several, that can be no path."""
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str) and "\0" in text:
            raise ConfigError(f"the {field} {text!r} has a NUL in it")


def _by_field(model: type[EndpointConfig], settings: Settings) -> list[tuple[str, Setting | None]]:
    """Each of `settings`, in the model's order; what is none of them last, with None."""
    known = {setting.field: setting for setting in settings_of(model)}
    fields = [field for field in model.__struct_fields__ if field in settings]
    fields += [field for field in settings if field not in model.__struct_fields__]
    return [(field, known.get(field)) for field in fields]


def _value(setting: Setting, plain: Any) -> Any:
    """What the model has for a plain value; what is of a wrong type is left for it to refuse."""
    read = setting.option.read
    if read is None or not is_text(setting):
        return plain
    if setting.option.is_repeated:
        return tuple(map(read, _texts(setting, plain)))
    (text,) = _texts(setting, [plain])
    return read(text)


def _texts(setting: Setting, plain: Any) -> list[str]:
    if not isinstance(plain, list | tuple):
        raise ConfigError(f"{setting.field} is a list of texts, not {plain!r}")
    for text in plain:
        if not isinstance(text, str):
            raise ConfigError(f"{setting.field} is written as text, not as {text!r}")
    return list(plain)


def plain_value(setting: Setting | None, value: Any) -> Any:
    """What the API and the records have for a value of the model."""
    if setting is not None and is_text(setting):
        if setting.option.is_repeated:
            return list(map(setting.option.write, value))
        return setting.option.write(value)
    return list(value) if isinstance(value, tuple) else value


def _item(setting: Setting) -> inspect.Type:
    """The type of the value, or of each value in a tuple of them."""
    kind = setting.type
    return kind.item_type if isinstance(kind, inspect.VarTupleType) else kind


def _socket(device: Device, name: str, settings: Settings, run: PurePath) -> Any:
    """Where front ends connect if that is not said."""
    cids = settings.get("cid", ())
    if device != "vsock" or not isinstance(cids, list | tuple):
        return str(run / f"{name}.sock")
    if len(cids) == 1:
        return (str(run / f"{name}.sock"),)
    return tuple(str(run / f"{name}-{cid}.sock") for cid in cids)
