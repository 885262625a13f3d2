# SPDX-License-Identifier: Apache-2.0
"""What the kernel's vsock tests say: each runs as a pair of programs, and both have to agree.

A program prints "NUMBER - NAME..." when a test begins, and then "ok", "skipped" or what is wrong,
after which it ends.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

BEGINS = re.compile(r"^(\d+) - (.+?)\.\.\.", re.MULTILINE)
COMPLETE = "All tests have been executed. Waiting other peer...ok"
"""The last that a program prints whose tests, and the other program's, have not failed."""
OK, SKIPPED = "ok", "skipped"
NOT_REACHED = "did not begin it"
SILENT = "began it and said no more"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended."""

    name: str
    server: str
    """"ok", "skipped", or what this side says is wrong."""
    client: str

    @property
    def passed(self) -> bool:
        """Whether both sides saw what they should have seen."""
        return self.server == self.client == OK

    @property
    def skipped(self) -> bool:
        """Whether it was left out, as one side at least had been asked to."""
        return SKIPPED in (self.server, self.client)


def outcomes(server: str, client: str) -> dict[int, Outcome]:
    """How the tests ended of which the two outputs tell, by their numbers."""
    ours, theirs = dict(told(server)), dict(told(client))
    nothing = ("", NOT_REACHED)
    return {
        number: Outcome(
            (ours.get(number) or theirs[number])[0],
            ours.get(number, nothing)[1],
            theirs.get(number, nothing)[1],
        )
        for number in sorted(ours.keys() | theirs.keys())
    }


def told(output: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """Number, name and end of each test, as one side's output has them."""
    begins = list(BEGINS.finditer(output))
    ends = [*(begin.start() for begin in begins[1:]), len(output)]
    for begin, end in zip(begins, ends, strict=True):
        words = output[begin.end() : end].partition(COMPLETE.partition("...")[0])[0].strip()
        yield int(begin[1]), (begin[2], words or SILENT)
