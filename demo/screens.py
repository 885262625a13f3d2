# SPDX-License-Identifier: Apache-2.0
"""The pictures of `blkd top` and of the dashboard in docs/images, of disks that are under load.

python -m demo.screens [DIRECTORY]
"""

import contextlib
import io
import itertools
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.text import Text
from selenium.webdriver.common.by import By

from harness.browser import browser, forget_all, waiting
from harness.daemon import PROGRAMS, Process
from harness.host import HostDaemon
from harness.terminal import Terminal

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
SIZE: Final = 256 << 20  # bytes of each disk
WIDTH: Final = 116  # characters, and lines, of the terminal
HEIGHT: Final = 18
PAGE: Final = (1360, 700)  # pixels
WATCHED: Final = 60.0  # seconds that the charts show
ENDLESS: Final = ("--runtime", "3600", "--quiet")
SETTLED: Final = 4.0  # seconds until the first figures of a load are those of its middle
FONT: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""In an SVG of rich: fonts that it would load from elsewhere."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a disk, in words of `blkd bench`."""

    name: str
    words: tuple[str, ...]
    settings: tuple[tuple[str, object], ...] = ()


LOADS: Final = (
    Load("db-primary", ("--rw", "randrw", "--bs", "16K", "--iodepth", "16", "--rate", "6000")),
    Load("db-replica", ("--rw", "randwrite", "--bs", "16K", "--iodepth", "4", "--rate", "1800")),
    Load("web-1", ("--rw", "randread", "--bs", "4K", "--iodepth", "4", "--rate", "9000")),
    Load("web-2", ("--rw", "randread", "--bs", "4K", "--iodepth", "2", "--rate", "2500")),
    Load("backup", ("--rw", "read", "--bs", "512K", "--iodepth", "8", "--rate", "900")),
)


def main(directory: Path) -> None:
    """Make all pictures."""
    directory.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="blkd-") as folder, _busy_host(Path(folder)) as host:
        _picture_of_top(host, directory / "top.svg")
        _pictures_of_dashboard(host, directory)


@contextlib.contextmanager
def _busy_host(folder: Path) -> Iterator[HostDaemon]:
    """A daemon with disks that are busy, and some that are not."""
    with (
        HostDaemon(folder, dashboard={"listen": "127.0.0.1:9751"}) as host,
        contextlib.ExitStack() as loads,
    ):
        host.ready()
        for load in LOADS:
            added = host.add(load.name, host.image(f"{load.name}.img", SIZE), **dict(load.settings))
            command = ["blkd", "bench", added["sockets"][0], *load.words, *ENDLESS]
            loads.enter_context(Process(command, folder / f"{load.name}.log"))
        host.add("mail", host.image("mail.img", SIZE))
        host.add("old", host.image("old.img", SIZE))
        host.call("POST", "/v1/exports/old/stop")
        host.add("test-vm", host.image("test-vm.img", SIZE))
        host.call("POST", "/v1/exports/test-vm/pause")
        yield host


def _picture_of_top(host: HostDaemon, path: Path) -> None:
    """The screen of `blkd top` as an SVG."""
    time.sleep(SETTLED)
    command = [PROGRAMS / "blkd", "top", "--daemon", host.socket]
    with Terminal(command, WIDTH, HEIGHT) as terminal:
        terminal.wait_for(lambda text: re.search(r"IOPS [1-9]", text))
        console = Console(width=WIDTH, record=True, file=io.StringIO())
        for line in range(HEIGHT):
            console.print(_line(terminal, line), no_wrap=True, crop=True)
    svg = console.export_svg(title="blkd top", unique_id="blkd-top")
    path.write_text(FONT.sub("", svg).rstrip() + "\n")


def _line(terminal: Terminal, number: int) -> Text:
    """A line of a screen, with its colours."""
    line = Text()
    cells = terminal.screen.buffer[number]
    row = [cells[column] for column in range(terminal.screen.columns)]
    for style, alike in itertools.groupby(row, _style):
        line.append("".join(cell.data for cell in alike), style)
    return line


def _style(cell: Char) -> Style:
    colour = None if cell.fg == "default" else {"brown": "yellow"}.get(cell.fg, cell.fg)
    return Style(color=colour, bold=cell.bold, reverse=cell.reverse)


def _pictures_of_dashboard(host: HostDaemon, directory: Path) -> None:
    """The page in the dark and in the light, as PNG."""
    url = host.call("GET", "/v1/dashboard")["url"]
    width, height = PAGE
    with browser(width, height, dark=True) as dark, browser(width, height) as light:
        for driver in (dark, light):
            forget_all(driver)
            driver.get(url)
            waiting(driver).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#rows tr"))
        time.sleep(WATCHED)
        dark.save_screenshot(directory / "dashboard.png")
        light.save_screenshot(directory / "dashboard-light.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
