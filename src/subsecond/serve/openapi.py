"""/openapi.json: a description of every route, made from the route table and the structs of the bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import subsecond
from subsecond.serve.routing import ApiRoute

REF = "#/components/schemas/{name}"
ERROR_TEXT = "Refused or failed; the body tells why, in the form of the API that the path belongs to"
PLAIN_PATHS = {"/metrics": "text/plain"}


def routes(others: Sequence[ApiRoute]) -> list[ApiRoute]:
    """Return the route that describes all others and itself."""

    @cache
    def document() -> bytes:
        return msgspec.json.encode(describe([*others, route]))

    async def show(_: Request) -> Response:
        return Response(document(), media_type="application/json")

    route = ApiRoute("GET", "/openapi.json", show, summary="This document")
    return [route]


def describe(routes: Sequence[ApiRoute]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of routes."""
    types = {kind for route in routes for kind in (route.request_type, route.response_type) if kind is not None}
    ordered = sorted(types, key=lambda kind: (kind.__module__, kind.__qualname__))
    schemas, components = msgspec.json.schema_components(ordered, ref_template=REF)
    schema_of = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = route.path.replace(":path}", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "subsecond", "version": subsecond.__version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}],
    }


def _operation(route: ApiRoute, path: str, schema_of: Mapping[type, Any]) -> dict[str, Any]:
    name = "".join(part for part in path.title() if part.isalnum())
    content: dict[str, Any] = {}
    if route.response_type is not None:
        content["application/json"] = {"schema": schema_of[route.response_type]}
    elif route.path in PLAIN_PATHS:
        content[PLAIN_PATHS[route.path]] = {"schema": {"type": "string"}}
    else:
        content["application/json"] = {"schema": {}}
    if route.is_streaming:
        content["application/x-ndjson" if path.startswith("/api/") else "text/event-stream"] = {
            "schema": {"type": "string"}
        }
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{name}",
        "summary": route.summary,
        "responses": {
            "200": {"description": "Done", "content": content},
            "default": {"description": ERROR_TEXT, "content": {"application/json": {"schema": {"type": "object"}}}},
        },
    }
    parameters = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if parameters:
        operation["parameters"] = [
            {"name": each, "in": "path", "required": True, "schema": {"type": "string"}} for each in parameters
        ]
    if route.request_type is not None:
        body = {"application/json": {"schema": schema_of[route.request_type]}}
        operation["requestBody"] = {"required": True, "content": body}
    if route.is_open:
        operation["security"] = []
    return operation
