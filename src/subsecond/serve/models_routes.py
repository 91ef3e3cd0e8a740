"""/v1/models and /version: what is served here, in a form that the clients of both APIs with that path can read."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import subsecond
from subsecond.serve.answers import artifact_name, kernels_name
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import FieldError
from subsecond.serve.registry import ModelState
from subsecond.serve.routing import ApiRoute

MAX_PAGE = 1000


class ModelReply(msgspec.Struct):
    """One model. `max_model_len` is None until the model is loaded, `subsecond` tells of the loaded one."""

    id: str
    created: int
    created_at: str
    display_name: str
    subsecond: dict[str, Any]
    max_model_len: int | None = None
    object: Literal["model"] = "model"
    type: Literal["model"] = "model"
    owned_by: str = "subsecond"


class ModelList(msgspec.Struct):
    """All models, or a page of them."""

    data: list[ModelReply]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class VersionReply(msgspec.Struct):
    """The version of the server."""

    version: str


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return the routes that tell what is here."""
    started_s = time.time()

    async def list_models(request: Request) -> Response:
        entries = [_reply(state, started_s) for state in context.registry.states()]
        return _json(_page(entries, request))

    async def show_model(request: Request) -> Response:
        name: str = request.path_params["model"]
        context.registry.check_name(name)
        return _json(_reply(next(s for s in context.registry.states() if s.spec.name == name), started_s))

    async def version(_: Request) -> Response:
        return _json(VersionReply(subsecond.__version__))

    return [
        ApiRoute("GET", "/v1/models", list_models, summary="List the models", response_type=ModelList),
        ApiRoute("GET", "/v1/models/{model:path}", show_model, summary="Show a model", response_type=ModelReply),
        ApiRoute("GET", "/version", version, summary="The version of the server", response_type=VersionReply),
    ]


def _reply(state: ModelState, started_s: float) -> ModelReply:
    created = datetime.fromtimestamp(int(started_s), UTC)
    reply = ModelReply(
        id=state.spec.name,
        created=int(started_s),
        created_at=created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        display_name=state.spec.name,
        subsecond={"is_loaded": state.served is not None, "is_loading": state.is_loading},
    )
    if state.last_error is not None:
        reply.subsecond["last_error"] = state.last_error
    loaded = state.served.loaded if state.served is not None else None
    model = loaded.model or loaded.embedder if loaded is not None else None
    if loaded is not None and model is not None:
        reply.max_model_len = model.checkpoint.config.context_length
        reply.subsecond |= {
            "kind": "language" if loaded.model is not None else "embedding",
            "artifact": artifact_name(model),
            "variant": model.backend.variant,
            "kernels": kernels_name(model),
            "num_bytes": loaded.num_bytes,
        }
    return reply


def _page(entries: list[ModelReply], request: Request) -> ModelList:
    """The part of the list that the query asks for; without a query all of it."""
    query = request.query_params
    unknown = set(query) - {"limit", "after_id", "before_id"}
    if unknown:
        name = min(unknown)[:100]
        raise FieldError(f"{name!r} is no parameter here; there are limit, after_id and before_id", param=name)
    limit_text = query.get("limit", str(MAX_PAGE))
    if not (limit_text.isascii() and limit_text.isdigit() and len(limit_text) < 5 and 1 <= int(limit_text) <= MAX_PAGE):
        raise FieldError(f"limit={limit_text[:20]} is not allowed; give 1 to {MAX_PAGE}", param="limit")
    limit = int(limit_text)
    ids = [entry.id for entry in entries]
    for name in ("after_id", "before_id"):
        if name in query and query[name] not in ids:
            raise FieldError(f"{name}={query[name][:100]} is no model here", param=name)
    start = ids.index(query["after_id"]) + 1 if "after_id" in query else 0
    end = ids.index(query["before_id"]) if "before_id" in query else len(ids)
    shown = entries[start:end]
    page = shown[-limit:] if "before_id" in query else shown[:limit]
    return ModelList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(page) < len(shown),
    )


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
