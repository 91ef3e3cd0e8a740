"""Whether the server lives and whether it can take requests, for those that watch it."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from subsecond.serve.context import ServerContext
from subsecond.serve.routing import ApiRoute


class Health(msgspec.Struct):
    """`reason` is set where the server is not ready."""

    status: Literal["live", "ready", "not ready"]
    reason: str | None = None


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return the routes that need no key."""

    async def live(_: Request) -> Response:
        return _response(Health("live"))

    async def ready(_: Request) -> Response:
        reason = _why_not(context)
        return _response(Health("ready") if reason is None else Health("not ready", reason))

    return [
        ApiRoute("GET", "/health/live", live, summary="Whether the server runs", response_type=Health, is_open=True),
        ApiRoute("GET", "/health/ready", ready, summary="Whether it can answer", response_type=Health, is_open=True),
    ]


def _why_not(context: ServerContext) -> str | None:
    phase = context.lifecycle.phase
    if phase != "serving":
        return "the first model is being loaded" if phase == "starting" else "the server is stopping"
    return None


def _response(health: Health) -> Response:
    status = 503 if health.status == "not ready" else 200
    return Response(msgspec.json.encode(health), status, media_type="application/json")
