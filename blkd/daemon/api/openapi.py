# SPDX-License-Identifier: Apache-2.0
"""The API as an OpenAPI 3.1 document, made from the table of routes and the models.

Settings of exports, which the models leave open, are described by those of `plain_settings`.
"""

import functools
import re
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import inspect

import blkd
from blkd.control import daemon_models as models
from blkd.control.models import PROBLEM_JSON, Problem
from blkd.daemon.api.routes import EVENT_STREAM, JSON, ROUTES, Route
from blkd.daemon.plain_settings import MODELS, NOT_SET, is_text
from blkd.export.option import Setting, settings_of

REF: Final = "#/components/schemas/{name}"

Schema = dict[str, Any]

REFUSALS: Final = {
    HTTPStatus.BAD_REQUEST: "no HTTP, or no JSON",
    HTTPStatus.FORBIDDEN: "the caller may not do this",
    HTTPStatus.NOT_FOUND: "there is no such export, group or operation",
    HTTPStatus.CONFLICT: "not possible in the present state",
    HTTPStatus.UNPROCESSABLE_ENTITY: "a field, parameter or setting that cannot be",
    HTTPStatus.INTERNAL_SERVER_ERROR: "an error of blkd or its host",
}
WITH_BODY: Final = {
    HTTPStatus.REQUEST_TIMEOUT: "the body does not come",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "a body over 64 KiB",
}
OF_OPERATION: Final = {HTTPStatus.SERVICE_UNAVAILABLE: "the daemon ends"}
OF_EXPORT: Final = {HTTPStatus.GATEWAY_TIMEOUT: "the export's process does not answer in time"}


@functools.cache
def openapi_document() -> Schema:
    """The whole document; not to be changed."""
    schemas, components = _schemas()
    paths: dict[str, Schema] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "blkd",
            "version": blkd.__version__,
            "summary": "Exports of a host: disks, networks and sockets of virtual machines",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }
    plain: Schema = msgspec.to_builtins(document)
    return plain


def _schemas() -> tuple[dict[type, Schema], dict[str, Schema]]:
    """The schema of each type that a route has, and the components that they refer to."""
    bodies = {route.body for route in ROUTES}
    answers = {kind for route in ROUTES for kind in route.answers.values() if kind is not Any}
    types = [*sorted(bodies | answers, key=str), Problem]
    found, components = msgspec.json.schema_components(types, ref_template=REF)
    for device, model in MODELS.items():
        components[_settings_name(device)] = _settings(model)
        components[_add_name(device)] = _add(components["AddExport"], device)
    components["AddExport"] = {
        "oneOf": [{"$ref": REF.format(name=_add_name(device))} for device in MODELS],
        "description": components["AddExport"]["description"],
    }
    return dict(zip(types, found, strict=True)), dict(sorted(components.items()))


def _settings_name(device: models.Device) -> str:
    return f"{device.capitalize()}Settings"


def _add_name(device: models.Device) -> str:
    return f"Add{device.capitalize()}"


def _settings(model: type[msgspec.Struct]) -> Schema:
    """What the settings of a device may be: the fields of their model, as plain values."""
    (_, components) = msgspec.json.schema_components([model], ref_template=REF)
    schema = components[model.__name__]
    options = {setting.field: setting for setting in settings_of(model)}
    properties = {
        field: _property(options.get(field), described)
        for field, described in schema["properties"].items()
        if field not in NOT_SET
    }
    required = [field for field in schema["required"] if field in properties and field != "socket"]
    return {**schema, "properties": properties, "required": required}


def _property(setting: Setting | None, described: Schema) -> Schema:
    """One setting's schema, with its text."""
    if setting is None:
        return described
    if is_text(setting):
        text: Schema = {"type": "string"}
        described = {"type": "array", "items": text} if setting.option.is_repeated else text
        if setting.default_text is not None:
            described["default"] = setting.default_text
    return {**described, "description": setting.option.text}


def _add(schema: Schema, device: models.Device) -> Schema:
    """What adds an export of one device."""
    properties = dict(schema["properties"])
    properties["device"] = {"const": device}
    properties["settings"] = {"$ref": REF.format(name=_settings_name(device))}
    properties["name"] = {**properties["name"], "not": {"enum": sorted(models.TAKEN_NAMES)}}
    required = list(schema["required"])
    if device == "blk":
        properties["device"]["default"] = device
    else:
        del properties["create"]
        required.append("device")
    return {**schema, "title": _add_name(device), "properties": properties, "required": required}


def _operation(route: Route, schemas: dict[type, Schema]) -> Schema:
    """What OpenAPI calls an operation: one call."""
    described: Schema = {
        "operationId": route.call,
        "summary": route.text,
        "parameters": _parameters(route),
        "responses": _responses(route, schemas),
    }
    if route.body is not models.NoBody:
        described["requestBody"] = {
            "required": any(field.required for field in msgspec.structs.fields(route.body)),
            "content": {JSON: {"schema": schemas[route.body]}},
        }
    return described


def _parameters(route: Route) -> list[Schema]:
    """What stands in the path, behind it and in headers."""
    found = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1} if name == "id" else _name_schema(),
        }
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    found += _query_parameters(route.query)
    if route.is_operation or route.waits:
        text = "`wait=SECONDS`: how long to wait for the end; `respond-async`: not at all"
        found.append(_header("Prefer", text))
    if route.has_condition:
        found.append(_header("If-Match", "ETags, of which one must be that of what is to change"))
    return found


def _name_schema() -> Schema:
    return {"type": "string", "pattern": models.NAME_PATTERN, "maxLength": models.MAX_NAME}


def _header(name: str, text: str) -> Schema:
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}


def _query_parameters(query: type) -> list[Schema]:
    (_, components) = msgspec.json.schema_components([query], ref_template=REF)
    info = inspect.type_info(query)
    assert isinstance(info, inspect.StructType)
    properties = components[query.__name__]["properties"]
    return [
        {"name": field.encode_name, "in": "query", "schema": _given(properties[field.encode_name])}
        for field in info.fields
    ]


def _given(schema: Schema) -> Schema:
    """The schema of a parameter where it is given: null is what stands for its absence."""
    given = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    return given[0] if given else schema


def _responses(route: Route, schemas: dict[type, Schema]) -> Schema:
    """What may be answered, by status."""
    responses = {
        str(int(status)): {
            "description": status.phrase,
            "content": _content(route, {} if kind is Any else schemas[kind]),
            **({"headers": {"ETag": {"schema": {"type": "string"}}}} if route.has_tag else {}),
            **({"links": _links("name")} if route.call == "add" else {}),
        }
        for status, kind in route.answers.items()
    }
    if route.is_operation:
        responses["202"] = {
            "description": "It goes on, at the Location",
            "headers": {"Location": {"schema": {"type": "string"}}},
            "content": {JSON: {"schema": schemas[models.Operation]}},
            "links": _links("id"),
        }
    for status, text in _refusals(route).items():
        responses[str(int(status))] = {
            "description": text,
            "content": {PROBLEM_JSON: {"schema": schemas[Problem]}},
        }
    return responses


def _links(field: str) -> Schema:
    """The calls about what an answer has under `field`: the name of an export, or an id."""
    return {
        route.call: {
            "operationId": route.call,
            "parameters": {field: f"$response.body#/{field}"},
        }
        for route in ROUTES
        if f"{{{field}}}" in route.path
    }


def _content(route: Route, schema: Schema) -> Schema:
    """The body of an answer: JSON, a text, or a stream of events with JSON in each."""
    if route.media_type != EVENT_STREAM:
        return {route.media_type: {"schema": schema}}
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": schema}
    event = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "data": data},
        "required": ["id", "data"],
    }
    return {EVENT_STREAM: {"schema": event}}


def _refusals(route: Route) -> dict[HTTPStatus, str]:
    found = {**REFUSALS, **route.refusals}
    if route.needs_change:
        found |= WITH_BODY
    if route.is_operation:
        found |= OF_OPERATION
    if "{name}" in route.path:
        found |= OF_EXPORT
    if route.has_condition:
        found[HTTPStatus.PRECONDITION_FAILED] = "what is to change has another ETag"
    return found
