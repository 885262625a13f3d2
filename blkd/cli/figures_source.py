# SPDX-License-Identifier: Apache-2.0
"""Where commands that watch have figures from: a daemon, or one process by its control socket."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec

from blkd.control import client, models
from blkd.control.daemon_client import Daemon
from blkd.control.daemon_models import EXPORTS, FIGURES
from blkd.errors import ControlError
from blkd.statistics.figures import Figures, NamedFigures
from blkd.statistics.live_table import Sample

Model = TypeVar("Model")


class Source(Protocol):
    """Whom to ask for figures."""

    def look(self) -> list[Sample]:
        """All exports as they are now.

        Raises SocketError where nobody answers, and ControlError where there is no proper answer.
        """


@dataclass(frozen=True, slots=True)
class OfDaemon:
    """All exports of a daemon, or those of some names."""

    daemon: Daemon
    names: Sequence[str] = ()

    def look(self) -> list[Sample]:
        """Ask for figures first: an export that is new since then has none yet."""
        answer = _read(self.daemon.get(FIGURES), _AllFigures)
        figures = {each.name: each.figures for each in answer.exports}
        found = [
            Sample(each.name, each.state, each.reason, figures.get(each.name))
            for each in _read(self.daemon.get(EXPORTS), _AllExports).exports
        ]
        if self.names:
            self._require(found)
            found = [each for each in found if each.name in self.names]
        return found

    def _require(self, found: Sequence[Sample]) -> None:
        there = {each.name for each in found}
        for name in self.names:
            if name not in there:
                raise ControlError(
                    f"there is no export {name}", hint="blkd ls tells those there are"
                )


@dataclass(frozen=True, slots=True)
class OfProcess:
    """What a process serves, by its control socket."""

    path: str
    limit: float = client.ANSWER_LIMIT

    def look(self) -> list[Sample]:
        """Ask it; a device that is no disk has no figures."""
        try:
            figures = _read(self._get(models.FIGURES), Figures)
        except ControlError as error:
            if error.status is None:
                raise
            figures = None
        shown = _read(self._get(models.EXPORT), _Shown)
        return [Sample(shown.name, shown.state, figures=figures)]

    def _get(self, target: str) -> Any:
        return client.call(self.path, "GET", target, limit=self.limit)


class _Shown(msgspec.Struct, frozen=True):
    """What is needed of what an export shows."""

    name: str
    state: str
    reason: str | None = None


class _AllExports(msgspec.Struct, frozen=True):
    exports: tuple[_Shown, ...]


class _AllFigures(msgspec.Struct, frozen=True):
    exports: tuple[NamedFigures, ...]


def _read(answer: Any, model: type[Model]) -> Model:
    """An answer as `model`.  Raises ControlError: who answers may be in the hands of a guest."""
    try:
        return msgspec.convert(answer, model)
    except msgspec.ValidationError as error:
        raise ControlError(f"these are no figures: {error}") from error
