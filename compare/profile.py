# SPDX-License-Identifier: Apache-2.0
"""Instructions of the data path's loop for each request, function by function: `make profile`.

callgrind runs `compare.hot_loop` and counts only in the loop's function and below.  The kernel's
share of a request does not count, and neither does the time that a cache miss takes.  Where the
processor's counters can be read, its cycles are shown too.
"""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

import click

from compare import counters, hot_loop
from compare.callgrind import Place, own_costs
from compare.errors import MeasurementFailed, SubjectMissing
from compare.generated import Definitions, plain_name
from compare.images import CHECKOUT
from compare.results import Function, Profile

VALGRIND: Final = "valgrind"
LIMIT: Final = 300.0  # seconds: an instruction takes some fifty times as long
MORE: Final = 50  # times as many requests where they run at full speed
LEAST: Final = 0.05  # instructions a request of a function that is worth a line
LOG_TAIL: Final = 300  # characters
GENERATED: Final = CHECKOUT / "build" / "cython"


def both_layouts(requests: int) -> list[Profile]:
    """Of the split ring and of the packed one.  Raises MeasurementFailed."""
    return [profile(requests, packed=packed) for packed in (False, True)]


def profile(requests: int, *, packed: bool) -> Profile:
    """Of one layout.  Raises MeasurementFailed; SubjectMissing without valgrind or a loop."""
    costs = count(driving(requests, packed=packed), hot_loop.FUNCTION)
    shares = by_function(costs, requests, sources())
    return Profile(
        "packed" if packed else "split",
        "callgrind",
        requests,
        round(sum(costs.values()) / requests, 1),
        [Function(name, round(share, 2)) for name, share in shares if share >= LEAST],
        cycles_of_one(requests * MORE, packed=packed),
    )


def driving(requests: int, *, packed: bool) -> list[str]:
    """What drives the loop in a process of its own."""
    layout = ["packed"] if packed else []
    return [sys.executable, "-m", "compare.hot_loop", f"{requests}", *layout]


def cycles_of_one(requests: int, *, packed: bool) -> float | None:
    """Cycles of a request: what twice as many cost more, so that Python's start does not count."""
    once, twice = (counters.cycles(driving(n, packed=packed)) for n in (requests, 2 * requests))
    return None if once is None or twice is None else round((twice - once) / requests, 1)


def count(command: list[str], function: str) -> Counter[Place]:
    """Instructions of each line while `function` runs.  Raises MeasurementFailed."""
    if not shutil.which(VALGRIND):
        raise SubjectMissing(f"no {VALGRIND} on this host", hint="make profile installs it")
    with tempfile.TemporaryDirectory(prefix="blkd-bench-") as name:
        out = Path(name) / "callgrind.out"
        words = [VALGRIND, "--tool=callgrind", f"--callgrind-out-file={out}", "--dump-line=yes"]
        words += [f"--toggle-collect={function}", "--collect-atstart=no", *command]
        done = subprocess.run(  # noqa: S603 - the command is our caller's, nothing from outside
            words, check=False, capture_output=True, text=True, timeout=LIMIT, cwd=CHECKOUT
        )
        said = [line for line in done.stderr.splitlines() if not line.startswith("==")]
        if done.returncode != 0:
            raise MeasurementFailed(" ".join(said)[-LOG_TAIL:] or f"status {done.returncode}")
        costs = own_costs(out.read_text().splitlines())
    if not costs:
        raise MeasurementFailed(f"{function} was never seen to run")
    return costs


def sources() -> dict[str, Definitions]:
    """The generated C by its file's name."""
    return {
        path.name: Definitions.of(path.read_text(errors="replace"))
        for path in GENERATED.rglob("*.c")
    }


def by_function(
    costs: Counter[Place], requests: int, generated: dict[str, Definitions]
) -> list[tuple[str, float]]:
    """Instructions a request of each function, inlined ones apart; most first."""
    shares: Counter[str] = Counter()
    for place, instructions in costs.items():
        source = generated.get(Path(place.file).name)
        owner = source.owner(place.line) if source else None
        shares[owner or plain_name(place.function)] += instructions
    return [(name, total / requests) for name, total in shares.most_common()]


@click.command()
@click.option("--requests", default=20_000, show_default=True)
@click.option("--function", default=hot_loop.FUNCTION, show_default=True, help="Count only in it.")
@click.argument("driver", nargs=-1)
def main(*, requests: int, function: str, driver: tuple[str, ...]) -> None:
    """Count the instructions of REQUESTS requests in DRIVER, a Python program and its arguments.

    Without one, in compare.hot_loop with both layouts of a ring.
    """
    try:
        if driver:
            costs = count([sys.executable, *driver], function)
            show("driver", by_function(costs, requests, sources()))
        else:
            for seen in both_layouts(requests):
                show(seen.layout, [(each.name, each.instructions) for each in seen.functions])
                if seen.cycles is not None:
                    click.echo(f"{seen.cycles:10.2f}  cycles, Python's share of the drive included")
    except MeasurementFailed as error:
        raise click.ClickException(str(error)) from error


def show(title: str, shares: list[tuple[str, float]]) -> None:
    """Print a table."""
    click.echo(f"{title}: {sum(share for _, share in shares):.1f} instructions a request")
    for name, share in shares:
        if share >= LEAST:
            click.echo(f"{share:10.2f}  {name}")


if __name__ == "__main__":
    main()
