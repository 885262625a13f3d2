# SPDX-License-Identifier: Apache-2.0
"""A group of commands, and how what goes wrong in one is shown."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import click

from blkd.cli.output import encode, is_for_programs, note_for_programs
from blkd.errors import BlkdError, ControlError


class Verbs(click.Group):
    """A group of commands whose errors are JSON for a program, and one line and a hint else."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether a program reads the output, before a wrong option is reported."""
        note_for_programs(ctx, args)
        words = [word for word in args if word != "--json"]
        with self._errors(ctx):
            if is_for_programs(ctx) and not words:
                raise click.UsageError("Missing command.", ctx)
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        with self._errors(ctx):
            return super().invoke(ctx)

    @contextlib.contextmanager
    def _errors(self, ctx: click.Context) -> Iterator[None]:
        """Turn errors into what click shows: JSON if a program reads it."""
        try:
            yield
        except JsonError:
            raise
        except BlkdError as error:
            if is_for_programs(ctx):
                raise JsonError(str(error), error.hint, problem=_problem(error)) from error
            raise click.ClickException(explain(error)) from error
        except click.ClickException as error:
            if not is_for_programs(ctx):
                raise
            raise JsonError(error.format_message(), None, error.exit_code) from error
        except (KeyboardInterrupt, click.Abort) as error:
            if not is_for_programs(ctx):
                raise
            raise JsonError("interrupted", None) from error


class JsonError(click.ClickException):
    """An error that is shown as a line of JSON.

    It has `error` and `hint` and, where an API has refused a call, the fields of its problem.
    """

    def __init__(
        self,
        message: str,
        hint: str | None,
        exit_code: int = 1,
        problem: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.problem = problem or {}
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it, on standard error unless another file is given."""
        line = encode({**self.problem, "error": self.message, "hint": self.hint})
        click.echo(line, file=file, err=file is None)


def _problem(error: BlkdError) -> Mapping[str, object] | None:
    """The problem by which an API has refused a call, if that is what happened."""
    if not isinstance(error, ControlError) or error.status is None:
        return None
    return {
        "type": error.kind,
        "title": error.title,
        "status": error.status,
        "detail": str(error),
    }


def explain(error: BlkdError) -> str:
    """The error for a person: what is wrong and, on a second line, what to do."""
    return f"{error}\nhint: {error.hint}" if error.hint else str(error)
