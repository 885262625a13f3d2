# SPDX-License-Identifier: Apache-2.0
"""The life of an export's process, as a machine without clock, process or disk.

Times are seconds of a monotonic clock, and come from the caller.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

from blkd.control.daemon_models import State, Wanted

FIRST_DELAY: Final = 0.1  # seconds before a dead process is started again
LAST_DELAY: Final = 10.0  # seconds; each delay is twice the one before
PROOF: Final = 10
"""A process that served for so many times the delay before it has proved that it can: so one that
dies now and then is always back at once, and one that dies at once takes less and less."""
PROOF_LIMIT: Final = 30.0  # seconds that are proof enough in any case
LOOP_DEATHS: Final = 5
LOOP_PERIOD: Final = 60.0
"""So many processes in a row, in so many seconds, that never came to serve: the next will not
either."""


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What an export is about, and what is wanted of it.  Every method gives the next one."""

    wanted: Wanted = "stopped"
    state: State = "stopped"
    reason: str | None = None
    """Why it is `restarting` or `failed`."""
    delay: float = 0.0
    """Seconds until it is started again, where it is `restarting`; or those before this start."""
    served_since: float | None = None
    """When the present process came to serve."""
    restarts: int = 0
    deaths: tuple[float, ...] = ()
    """When the last processes died that had never served, without one between them that had."""

    @property
    def has_process(self) -> bool:
        """Whether there is one, or is about to be."""
        return self.state in {"starting", "serving", "paused", "stopping"}

    def start(self) -> Self:
        """Serve it: from now on if it is not served, and anew where it is to be tried no more."""
        if self.state in {"starting", "serving", "paused"}:
            return replace(self, wanted="serving")
        if self.state == "stopping":  # the process ends first
            return replace(self, wanted="serving")
        return type(self)(wanted="serving", state="starting")

    def adopt(self, wanted: Wanted, now: float) -> Self:
        """A process is found that serves it, whether that is wanted or not."""
        if self.state == "stopping":
            return self
        return replace(self, wanted=wanted, state="serving", reason=None, served_since=now)

    def ready(self, now: float) -> Self:
        """The process serves."""
        if self.state != "starting":
            return self
        return replace(self, state="serving", reason=None, served_since=now, deaths=())

    def pause(self) -> Self:
        """The process fetches nothing more."""
        return replace(self, state="paused") if self.state == "serving" else self

    def resume(self) -> Self:
        """The process fetches again."""
        return replace(self, state="serving") if self.state == "paused" else self

    def stop(self) -> Self:
        """Serve it no more."""
        if self.has_process:
            return replace(self, wanted="stopped", state="stopping", reason=None)
        return type(self)(wanted="stopped")

    def refuse(self, reason: str) -> Self:
        """The process has said why it cannot serve, to one who can do something about it."""
        if self.state == "stopping":
            return self.die(0.0, reason)
        return replace(self, state="failed", reason=reason, served_since=None)

    def die(self, now: float, reason: str) -> Self:
        """The process has ended, by itself or because that was asked of it."""
        if self.wanted == "stopped":
            return type(self)(wanted="stopped")
        if self.state == "stopping":  # and was started meanwhile
            return type(self)(wanted="serving", state="starting")
        if self.served_since is None:
            deaths = (*(at for at in self.deaths if now - at < LOOP_PERIOD), now)
        else:
            deaths = ()
        if len(deaths) >= LOOP_DEATHS:
            return replace(self, state="failed", reason=reason, deaths=(), delay=0.0)
        return replace(
            self,
            state="restarting",
            reason=reason,
            delay=self._next_delay(now),
            served_since=None,
            deaths=deaths,
        )

    def restart(self) -> Self:
        """The delay is over."""
        if self.state != "restarting":
            return self
        return replace(self, state="starting", restarts=self.restarts + 1)

    def _next_delay(self, now: float) -> float:
        served = 0.0 if self.served_since is None else now - self.served_since
        if not self.delay or served >= min(PROOF * self.delay, PROOF_LIMIT):
            return FIRST_DELAY
        return min(2 * self.delay, LAST_DELAY)
