"""Whether the server lives and whether it can take requests, for those that watch it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from subsecond.engine.protocol import EngineStats
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

    renewals: dict[str, asyncio.Task[None]] = {}

    async def renew(name: str) -> None:
        try:
            await context.registry.renew(name)
        finally:
            del renewals[name]

    async def ready(_: Request) -> Response:
        # who is told that an engine stopped will send no request that would have it loaded anew
        for name in _stopped_engines(context):
            if name not in renewals:
                renewals[name] = asyncio.create_task(renew(name))
        reason = _why_not(context)
        if reason is None and renewals:
            reason = f"the engine of {', '.join(renewals)} stopped working and is loaded anew"
        return _response(Health("ready") if reason is None else Health("not ready", reason))

    return [
        ApiRoute("GET", "/health/live", live, summary="Whether the server runs", response_type=Health, is_open=True),
        ApiRoute("GET", "/health/ready", ready, summary="Whether it can answer", response_type=Health, is_open=True),
    ]


def _why_not(context: ServerContext) -> str | None:
    """Why requests should go elsewhere; None where they are welcome."""
    phase = context.lifecycle.phase
    if phase != "serving":
        return "the first model is being loaded" if phase == "starting" else "the server is stopping"
    limit_ms = context.settings.stall_timeout_s * 1e3
    stalled = [name for name, stats in _stats(context) if stats.step_ms is not None and stats.step_ms > limit_ms]
    if stalled:
        return f"the engine of {', '.join(stalled)} computes one step for more than {limit_ms / 1e3:g} s"
    return None


def _stopped_engines(context: ServerContext) -> list[str]:
    return [name for name, stats in _stats(context) if not stats.is_alive]


def _stats(context: ServerContext) -> Iterator[tuple[str, EngineStats]]:
    for state in context.registry.states():
        model = state.served.loaded.model if state.served is not None else None
        if model is not None:
            yield state.spec.name, model.engine.stats()


def _response(health: Health) -> Response:
    status = 503 if health.status == "not ready" else 200
    return Response(msgspec.json.encode(health), status, media_type="application/json")
