# SPDX-License-Identifier: Apache-2.0
"""The back ends as processes: blkd and qemu-storage-daemon, each serving one image once."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compare.cases import Family, Subject
from compare.errors import MeasurementFailed, SubjectMissing
from harness.process import kill, spawn

BLKD: Final = Path(sys.executable).with_name("blkd")
QSD: Final = "qemu-storage-daemon"
NULL: Final = "null:"
START_LIMIT: Final = 20.0  # seconds
LOOK_AGAIN: Final = 0.01  # seconds
LOG_TAIL: Final = 300  # characters shown of what a back end wrote before it gave up


@dataclass(frozen=True, slots=True)
class Target:
    """A back end that waits for its front end."""

    pid: int
    socket: Path


@dataclass(frozen=True, slots=True)
class Place:
    """A directory for what one back end needs."""

    path: Path

    @property
    def socket(self) -> Path:
        """Where the front end connects."""
        return self.path / "disk.sock"

    @property
    def pidfile(self) -> Path:
        """qemu-storage-daemon writes it when it is ready."""
        return self.path / "pid"

    @property
    def log(self) -> Path:
        """What the back end writes to stderr."""
        return self.path / "log"


def blkd_command(subject: Subject, image: str, place: Place, queues: int) -> list[str]:
    """`blkd serve`, which says in a line of JSON that it is ready."""
    words = [f"{BLKD}", "serve", image, "--socket", f"{place.socket}", "--queues", f"{queues}"]
    return [*words, "--json", *subject.options]


def qsd_command(subject: Subject, image: str, place: Place, queues: int) -> list[str]:
    """qemu-storage-daemon with one export, on its main loop or on an iothread of its own."""
    engine, *more = subject.options
    if engine == "null":
        size = image.removeprefix(NULL)
        blockdev = f"driver=null-co,node-name=disk,size={size},read-zeroes=off"
    else:
        blockdev = f"driver=file,node-name=disk,filename={image},aio={engine},cache.direct=on"
    export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues}"
    export += f",addr.type=unix,addr.path={place.socket}"
    words = [QSD, "--blockdev", blockdev, "--pidfile", f"{place.pidfile}"]
    if "iothread" in more:
        words += ["--object", "iothread,id=t"]
        export += ",iothread=t"
    return [*words, "--export", export]


@contextlib.asynccontextmanager
async def serving(
    subject: Subject, image: str, *, cpus: str, queues: int = 1
) -> AsyncIterator[Target]:
    """A back end that is ready, on these processors; at the end it is killed.

    Raises SubjectMissing when it is not here or does not take the image.
    """
    if subject.family is Family.QSD and not shutil.which(QSD):
        raise SubjectMissing(f"no {QSD} on this host", hint="make bench installs it")
    with tempfile.TemporaryDirectory(prefix="blkd-bench-") as name:
        place = Place(Path(name))
        command = blkd_command if subject.family is Family.BLKD else qsd_command
        with place.log.open("wb") as log:
            words = command(subject, image, place, queues)
            process = await spawn("taskset", "-c", cpus, *words, stdout=PIPE, stderr=log)
        try:
            async with asyncio.timeout(START_LIMIT):
                await _ready(subject, process, place)
            yield Target(process.pid, place.socket)
        finally:
            await kill(process)


async def _ready(subject: Subject, process: Process, place: Place) -> None:
    assert process.stdout is not None
    if subject.family is Family.BLKD:
        if await process.stdout.readline():
            return
        await process.wait()
    while process.returncode is None:
        if place.pidfile.exists():
            return
        await asyncio.sleep(LOOK_AGAIN)
    said = place.log.read_text(errors="replace").replace(f"{place.path}{os.sep}", "").strip()
    raise SubjectMissing(f"{subject.title} does not start: {said[-LOG_TAIL:]}")


async def output(*words: object, limit: float) -> str:
    """What a program prints.  Raises MeasurementFailed unless it ends well and in time."""
    process = await spawn(*words, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(limit):
            out, err = await process.communicate()
    except TimeoutError as error:
        raise MeasurementFailed(f"{words[0]} has not ended in {limit:g} s") from error
    finally:
        await kill(process)
    if process.returncode != 0:
        said = err.decode(errors="replace").strip() or out.decode(errors="replace").strip()
        raise MeasurementFailed(f"status {process.returncode}: {said[-LOG_TAIL:]}")
    return out.decode()
