# SPDX-License-Identifier: Apache-2.0
"""The settings of `blkd daemon`: `blkd.toml`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from blkd.daemon import toml_text
from blkd.daemon.loopback import LoopbackAddress, read_address
from blkd.daemon.room import Threshold
from blkd.errors import ConfigError

MAX_RUN: Final = 84
"""Bytes of the path `run`: a socket's path has 107, of which exports/N/control.sock takes the rest
where N is one letter."""
DYNAMIC: Final = "dynamic"
UNIX: Final = "unix"
DASHBOARD_SOCKET: Final = "blkd-dashboard.sock"
"""In `run`, where the dashboard listens if it is `unix`."""
NEARLY_FULL: Final = "5%"

Path = Annotated[str, Meta(min_length=1, pattern=r"^[^\0]+$(?!\n)")]
OnStop = Literal["keep", "stop"]


@dataclass(frozen=True, slots=True)
class Directories:
    """Where things are that `blkd.toml` does not name."""

    state: str
    run: str
    images: str
    config: str
    """The path of `blkd.toml` itself, which need not be there."""


SYSTEM: Final = Directories(
    state="/var/lib/blkd",
    run="/run/blkd",
    images="/var/lib/blkd/images",
    config="/etc/blkd/blkd.toml",
)


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table `[metrics]`: how Prometheus reaches them besides the daemon's socket."""

    listen: str | None = None
    """An address of the loopback with a port, where anybody on this host may read them."""

    @property
    def address(self) -> LoopbackAddress | None:
        """`listen`, read.  Raises ConfigError."""
        return None if self.listen is None else read_address(self.listen)


class DashboardConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table `[dashboard]`: where browsers reach it."""

    listen: str | None = None
    """An address of the loopback with a port; or `unix`, for a socket that ssh forwards."""

    @property
    def is_unix(self) -> bool:
        """Whether it is a socket in the file system."""
        return self.listen == UNIX

    @property
    def address(self) -> LoopbackAddress | None:
        """Where it is over TCP, if it is.  Raises ConfigError."""
        return None if self.listen is None or self.is_unix else read_address(self.listen)


class DaemonConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"
):
    """What a daemon is to do, on which directories; paths are absolute."""

    state: Path
    """Directory of the records of exports and of their logs; of one daemon alone."""
    run: Path
    """Directory of the sockets; the daemon's own is blkd.sock."""
    images: tuple[Path, ...]
    """Directories beneath which images may be served, created and deleted."""
    devices: tuple[Path, ...] = ()
    """Block devices that may be served: paths in which `*` and `?` match within a name."""
    taps: tuple[str, ...] = ()
    """TAPs that may be served, by name, with `*` and `?` as well."""
    socket_group: str | None = None
    """The group of vhost-user sockets whose exports name none."""
    read_group: str | None = None
    """Its members may ask."""
    change_group: str | None = None
    """Its members may do everything."""
    sandbox: Literal["on", "off"] = "on"
    user: str = DYNAMIC
    """Whose the processes of exports are: `dynamic` for one of its own each, or a name."""
    on_stop: OnStop = "keep"
    """What becomes of the exports when the daemon ends: they go on, or end too."""
    nearly_full: str = NEARLY_FULL
    """How little is free in the file system of an image before that is told: a share or bytes."""
    metrics: MetricsConfig = MetricsConfig()
    dashboard: DashboardConfig = DashboardConfig()

    @property
    def room(self) -> Threshold:
        """`nearly_full`, read.  Raises ConfigError."""
        return Threshold.read(self.nearly_full)

    @property
    def socket(self) -> str:
        """Where the API is called."""
        return f"{self.run}/blkd.sock"

    @property
    def dashboard_socket(self) -> str:
        """Where the dashboard is if it is not on TCP."""
        return f"{self.run}/{DASHBOARD_SOCKET}"

    @property
    def dashboard_token(self) -> str:
        """The file with what opens the dashboard."""
        return f"{self.state}/dashboard-token"

    @property
    def records(self) -> str:
        """Directory of a file for each export."""
        return f"{self.state}/exports"

    @property
    def group_records(self) -> str:
        """Directory of a file for each group."""
        return f"{self.state}/groups"

    @property
    def logs(self) -> str:
        """Directory of what each export has logged."""
        return f"{self.state}/log"


class _Written(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"
):
    """The file, in which everything may be left out."""

    state: Path | None = None
    run: Path | None = None
    images: Path | tuple[Path, ...] | None = None
    devices: tuple[Path, ...] = ()
    taps: tuple[str, ...] = ()
    socket_group: str | None = None
    read_group: str | None = None
    change_group: str | None = None
    sandbox: Literal["on", "off"] = "on"
    user: str = DYNAMIC
    on_stop: OnStop = "keep"
    nearly_full: str = NEARLY_FULL
    metrics: MetricsConfig = MetricsConfig()
    dashboard: DashboardConfig = DashboardConfig()


def user_directories(environment: Mapping[str, str], home: str, uid: int) -> Directories:
    """Where an ordinary user's daemon has its things (XDG base directories)."""

    def under(variable: str, fallback: str) -> str:
        place = environment.get(variable, "")
        return f"{place if place.startswith('/') else fallback}/blkd"

    return Directories(
        state=under("XDG_STATE_HOME", f"{home}/.local/state"),
        run=under("XDG_RUNTIME_DIR", f"/run/user/{uid}"),
        images=under("XDG_DATA_HOME", f"{home}/.local/share") + "/images",
        config=under("XDG_CONFIG_HOME", f"{home}/.config") + "/blkd.toml",
    )


def read_config(content: bytes, where: str, otherwise: Directories) -> DaemonConfig:
    """The settings in the file at `where`, an absolute path.

    Paths in it that are not absolute are from the directory of the file.

    Raises ConfigError, with path and line.
    """
    written = toml_text.read(content, where, _Written)
    text = content.decode()
    place = PurePath(where).parent

    def absolute(path: str) -> str:
        return str(place / path)

    images = (written.images,) if isinstance(written.images, str) else written.images
    config = DaemonConfig(
        state=absolute(written.state or otherwise.state),
        run=absolute(written.run or otherwise.run),
        images=tuple(map(absolute, (otherwise.images,) if images is None else images)),
        **{
            field: getattr(written, field)
            for field in _Written.__struct_fields__
            if field not in {"state", "run", "images"}
        },
    )
    if wrong := _wrong(config):
        keys, reason = wrong
        raise ConfigError(f"{where}:{toml_text.line_of(text, *keys)}: {reason}")
    return config


def _wrong(config: DaemonConfig) -> tuple[tuple[str, ...], str] | None:
    """The key of what is no good, behind that of its table if it is in one, and why."""
    if (length := len(config.run.encode())) > MAX_RUN:
        return ("run",), f"{config.run} has {length} bytes; sockets beneath allow {MAX_RUN}"
    if config.run == config.state:
        return ("run",), f"state and run are both {config.run}"
    for pattern in config.devices:
        if not pattern.startswith("/") or ".." in PurePath(pattern).parts:
            return ("devices",), f"{pattern} is no absolute path"
        if re.match(r"/(proc|sys)(/|$)", pattern):
            return ("devices",), f"{pattern} names no block devices"
    for keys, read in (
        (("nearly-full",), lambda: config.room),
        (("metrics", "listen"), lambda: config.metrics.address),
        (("dashboard", "listen"), lambda: config.dashboard.address),
    ):
        try:
            read()
        except ConfigError as error:
            return keys, str(error)
    return None
