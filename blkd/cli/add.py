# SPDX-License-Identifier: Apache-2.0
"""`blkd add`, `add-net`, `add-vsock` and `set`: exports of a daemon and their settings.

Each kind of device has a command of its own, as without a daemon: their options have little in
common, and `--help`, completion and the man page of each say what there is.
"""

import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from blkd.cli import size_arguments
from blkd.cli.completion import complete_names
from blkd.cli.export_options import daemon_options, managed_settings, read_value
from blkd.cli.output import json_option, print_result
from blkd.cli.target import daemon_option
from blkd.cli.waiting import watch
from blkd.control.daemon_client import Daemon, export_path
from blkd.control.daemon_models import EXPORTS, ChangeExport, Device, NewImage
from blkd.daemon.plain_settings import MODELS, plain_value
from blkd.errors import ConfigError
from blkd.export.config import name_of
from blkd.export.option import UNSET

SOCKET: Final = "Where the VMM is to connect; beneath the daemon's `run` if not given."
PATHS: Final = frozenset({"image", "socket", "uds"})
"""Settings that are paths: the daemon runs in another directory."""
NO_FILES: Final = re.compile(r"(null|faulty):")
"""How the names of images begin that are no paths."""
LATEST: Final = "features=latest"

Command = TypeVar("Command", bound=Callable[..., object])


def add_options(
    device: Device, required: Container[str] = (), **texts: str
) -> Callable[[Command], Command]:
    """Add what all commands have that add an export: its name, its settings, the daemon."""

    def decorate(command: Command) -> Command:
        stopped = click.option(
            "--stopped", is_flag=True, help="Do not serve it now: blkd start does."
        )
        options = daemon_options(MODELS[device], {"socket": SOCKET, **texts}, required)
        return options(stopped(daemon_option(json_option(command))))

    return decorate


@click.command()
@click.argument("image", metavar="IMAGE")
@click.option("--name", metavar="NAME", help="What to call it; if not given, as its image.")
@add_options("blk")
@click.option(
    "--create",
    metavar="SIZE",
    callback=lambda ctx, param, text: text and size_arguments.positive(ctx, param, text),
    help="Make the image first, of this size (10G, 512M); it may not exist.",
)
@click.option("--preallocate", is_flag=True, help="With --create: take all of its space now.")
def add(
    daemon: Daemon,
    image: str,
    name: str | None,
    *,
    create: int | None,
    preallocate: bool,
    **settings: Any,
) -> None:
    """Have the daemon serve IMAGE, a raw image or a block device, from now on, over reboots too.

    Nothing is done where the daemon has an export of this name with the same settings.
    """
    if preallocate and create is None:
        raise click.UsageError("--preallocate is only for an image that --create makes")
    new = None if create is None else NewImage(size=create, preallocate=preallocate)
    _add(daemon, "blk", name or name_of(image), new, {"image": image, **settings})


@click.command("add-net")
@click.argument("name")
@add_options("net", {"tap"}, queues="Most pairs of queues that a guest may use.")
def add_net(daemon: Daemon, name: str, **settings: Any) -> None:
    """Have the daemon serve a TAP of this host as the network device NAME, over reboots too."""
    _add(daemon, "net", name, None, settings)


@click.command("add-vsock")
@click.argument("name")
@add_options("vsock", {"cid"})
def add_vsock(daemon: Daemon, name: str, **settings: Any) -> None:
    """Have the daemon give virtual machines the socket devices NAME, over reboots too."""
    _add(daemon, "vsock", name, None, settings)


def _add(
    daemon: Daemon,
    device: Device,
    name: str,
    create: NewImage | None,
    options: dict[str, Any],
) -> None:
    as_json, stopped = options.pop("as_json"), options.pop("stopped")
    wanted = {
        "name": name,
        "device": device,
        "settings": written_settings(device, options),
        "create": create,
        "start": not stopped,
    }
    with watch(as_json=as_json) as observe:
        result = daemon.call("POST", EXPORTS, wanted, observe=observe)
    print_result(result, title="export", as_json=as_json)


def written_settings(device: Device, options: dict[str, Any]) -> dict[str, Any]:
    """The plain values of the options that are not their defaults, with whole paths."""
    known = {setting.field: setting for setting in managed_settings(MODELS[device])}
    return {
        field: _with_whole_paths(field, plain_value(known.get(field), value))
        for field, value in options.items()
        if field not in known or value not in (known[field].default, *UNSET)
    }


def _with_whole_paths(field: str, value: Any) -> Any:
    if field not in PATHS or value is None:
        return value
    if isinstance(value, list):
        return [str(Path(each).absolute()) for each in value]
    return value if field == "image" and NO_FILES.match(value) else str(Path(value).absolute())


@click.command("set")
@click.argument("name", shell_complete=complete_names)
@click.argument("settings", nargs=-1, required=True, metavar="SETTING=VALUE...")
@daemon_option
@json_option
def set_(daemon: Daemon, name: str, settings: tuple[str, ...], *, as_json: bool) -> None:
    """Change settings of an export: now what can change while it is served, or at its next start.

    SETTING is an option of blkd add without its dashes, as in read-only=yes or cache=writeback; no
    VALUE means the default.  features=latest lets the guest see what is new at the next start.
    """
    device = daemon.get(export_path(name))["device"]
    wanted = ChangeExport(settings=read_settings(device, settings))
    with watch(as_json=as_json) as observe:
        result = daemon.call("PATCH", export_path(name), wanted, observe=observe)
    print_result(result, title="change", as_json=as_json)


def read_settings(device: Device, words: tuple[str, ...]) -> dict[str, Any]:
    """The settings that `SETTING=VALUE` words mean.  Raises click.UsageError."""
    known = {each.field.replace("_", "-"): each for each in managed_settings(MODELS[device])}
    known |= {each.flag.removeprefix("--"): each for each in known.values()}
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise click.UsageError(f"{word!r} is no setting and value; write read-only=yes")
        if word == LATEST:
            values["features"] = "latest"
        elif name == "image" and device == "blk":
            values["image"] = _with_whole_paths("image", text)
        elif name not in known or name.startswith("no-"):
            names = ", ".join(sorted(each for each in known if not each.startswith("no-")))
            raise click.UsageError(f"there is no setting {name!r}; there are {names}")
        else:
            setting = known[name]
            value = _value(name, setting, text)
            if isinstance(value, list) and setting.option.is_repeated:
                value = [*values.get(setting.field, []), *value]
            values[setting.field] = _with_whole_paths(setting.field, value)
    return values


def _value(name: str, setting: Any, text: str) -> Any:
    try:
        return read_value(setting, text)
    except (ConfigError, click.BadParameter) as error:
        reason = error.message if isinstance(error, click.BadParameter) else str(error)
        raise click.UsageError(f"{name}: {reason}") from error
