# SPDX-License-Identifier: Apache-2.0
"""Prints the calls of the daemon's API and their models, as `docs/control-api.md` has them.

python -m blkd.daemon.api.calls_document
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from blkd.control import daemon_models as models
from blkd.daemon.api.routes import ROUTES, Route

BEGIN: Final = "<!-- printed by python -m blkd.daemon.api.calls_document -->\n"
END: Final = "<!-- end of what is printed -->\n"
MODELS: Final[tuple[type[msgspec.Struct], ...]] = (
    models.DaemonView,
    models.AddExport,
    models.NewImage,
    models.ChangeExport,
    models.AddGroup,
    models.ChangeGroup,
    models.CreateImage,
    models.RemoveQuery,
    models.LogsQuery,
    models.EventsQuery,
    models.ExportSummary,
    models.ExportView,
    models.ChangeResult,
    models.Removed,
    models.Logs,
    models.GroupView,
    models.GroupMember,
    models.RemovedGroup,
    models.DashboardView,
    models.ImageView,
    models.Operation,
    models.Event,
)
"""Those whose fields are listed; the bodies of a pause and a resize are described above."""
NOTHING: Final = (models.NoQuery, models.NoBody)
OTHERS: Final = {Any: "as of one export", dict[str, Any]: "the document", str: "text"}
"""Answers that are none of these models."""


def tables() -> str:
    """All that is printed, as Markdown."""
    lines = ["| Call | Takes | Answers | Does |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(_row(route))} |" for route in ROUTES]
    for model in MODELS:
        lines += ["", f"**{model.__name__}**: {_first_line(model)}", ""]
        lines += ["| Field | Type | Meaning |", "| --- | --- | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in _fields(model)]
    return "\n".join(lines) + "\n"


def _row(route: Route) -> Iterator[str]:
    yield f"`{route.method} {route.path}`"
    taken = [each.__name__ for each in (route.query, route.body) if each not in NOTHING]
    yield ", ".join(taken)
    answers = [f"{int(status)} {_name(kind)}" for status, kind in route.answers.items()]
    yield ", ".join(answers + (["202 Operation"] if route.is_operation else []))
    yield route.text


def _name(kind: Any) -> str:
    return OTHERS.get(kind) or str(kind.__name__)


def _first_line(model: type) -> str:
    text = inspect.getdoc(model)
    assert text is not None
    return " ".join(text.partition("\n\n")[0].split())


def _fields(model: type[msgspec.Struct]) -> Iterator[tuple[str, str, str]]:
    """Each field that is the model's own: its name, type and default, and what it means."""
    texts = _texts(model)
    is_taken = model.__struct_config__.forbid_unknown_fields
    own = set(model.__annotations__)
    schema = msgspec.json.schema_components([model], ref_template="{name}")[1][model.__name__]
    for field in msgspec.structs.fields(model):
        if field.name in own:
            kind = _type(schema["properties"][field.encode_name])
            given = f", {_default(field)} if not given" if is_taken and not field.required else ""
            yield f"`{field.encode_name}`", kind + given, texts.get(field.name, "")


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:
        value = field.default_factory() if callable(field.default_factory) else None
    return f"`{msgspec.json.encode(value).decode()}`" if value is not msgspec.UNSET else "nothing"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "$ref" in schema:
        return str(schema["$ref"])
    kind = str(schema.get("type", "anything"))
    return f"array of {_type(schema['items'])}" if schema.get("items") else kind


def _texts(model: type) -> dict[str, str]:
    """The docstrings of a model's fields, which Python does not keep."""
    (found,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(found, ast.ClassDef)
    texts = {}
    for field, text in zip(found.body, found.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            said = " ".join(str(text.value.value).split())
            texts[field.target.id] = re.sub(r"\bNone\b", "null", said)
    return texts


if __name__ == "__main__":
    sys.stdout.write(BEGIN + "\n" + tables() + "\n" + END)
