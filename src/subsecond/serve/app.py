"""The server as one ASGI application: the gate that every request passes, and the routes behind it."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from subsecond.serve import (
    anthropic_messages,
    embeddings,
    exposition,
    health,
    models_routes,
    ollama,
    openai_chat,
    openai_completions,
    openapi,
    responses,
    tokenize,
)
from subsecond.serve.auth import ApiKeys, Doorkeeper, check_reach
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import ClientGoneError, UnavailableError, error_response, public_error, style_of
from subsecond.serve.limits import Limits
from subsecond.serve.registry import ModelRegistry
from subsecond.serve.routing import ApiRoute, RouteTable
from subsecond.serve.settings import ServeSettings

ROUTE_MODULES = (
    health,
    models_routes,
    ollama,
    openai_chat,
    openai_completions,
    responses,
    anthropic_messages,
    embeddings,
    tokenize,
    exposition,
)
REQUEST_ID_HEADER = "x-request-id"
OTHER_PATHS = "other"
_log = logging.getLogger(__name__)


class ServerApp:
    """Answers every request: checks who asks, finds the route, and turns whatever goes wrong into an answer."""

    def __init__(self, context: ServerContext, keys: ApiKeys, routes: list[ApiRoute]) -> None:
        self.context = context
        self.table = RouteTable(routes)
        self._doorkeeper = Doorkeeper(context.settings, keys)
        self._open_paths = frozenset(route.path for route in routes if route.is_open)
        self._numbers = itertools.count(1)
        self._prefix = secrets.token_hex(4)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; nothing but cancellation leaves it."""
        assert scope["type"] == "http", "the server is started without lifespan events and web sockets"
        request_id = f"{self._prefix}-{next(self._numbers):x}"
        scope["subsecond.request_id"] = request_id
        headers = Headers(scope=scope)
        sender = _Sender(send, {REQUEST_ID_HEADER: request_id, **self._doorkeeper.shared_headers(headers)})
        lifecycle = self.context.lifecycle
        lifecycle.enter()
        start_s = time.perf_counter()
        try:
            await self._answer(scope, headers, receive, sender)
        except ClientGoneError:
            pass  # and with it the one who would read what became of the request
        except Exception as error:
            told = public_error(error, request_id)
            if not sender.status:
                await error_response(told, style_of(scope["path"]))(scope, receive, sender)
            # else the answer stays without its end, upon which the connection is closed
        finally:
            lifecycle.leave()
            self._note(scope, sender.status, time.perf_counter() - start_s)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if path not in self._open_paths or method not in ("GET", "HEAD"):
            if method == "OPTIONS" and self._doorkeeper.answers_preflight(headers):
                await Response(status_code=204)(scope, receive, send)
                return
            scope["subsecond.tenant"] = self._doorkeeper.tenant(headers)
        route, scope["path_params"] = self.table.find(method, path)
        scope["subsecond.route"] = route.path
        request = Request(scope, receive, send)
        if route.method == "POST" and self.context.lifecycle.phase == "draining":
            raise UnavailableError(
                "the server is stopping and takes no new requests; ask again at another one, or later",
                code="draining",
                retry_after_s=self.context.settings.drain_timeout_s,
            )
        holding = scope["subsecond.holding"] = self.context.limits.holding()
        try:
            response: Response = await route.handler(request)
            await response(scope, receive, send)
        finally:
            holding.close()

    def _note(self, scope: Scope, status: int, total_s: float) -> None:
        """Count a response, and log it where that is asked for: by the route, since a path may be anything."""
        route = scope.get("subsecond.route", OTHER_PATHS)
        self.context.metrics.num_responses[route, status] += 1
        if self.context.settings.access_log:
            who, number = scope.get("subsecond.tenant") or "-", scope["subsecond.request_id"]
            _log.info("%s %s %s %d %.1f ms", number, who, f"{scope['method']} {route}", status, total_s * 1e3)


class _Sender:
    """Passes an answer on with the headers that every one has; `status` is 0 until it has begun."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._headers]
        await self._send(message)


def make_app(registry: ModelRegistry, settings: ServeSettings, keys: ApiKeys | None = None) -> ServerApp:
    """Return the server's application; `app.context` holds its parts.

    Raises:
        InputError: the settings let other machines connect, and there are no keys.
    """
    keys = keys or ApiKeys()
    check_reach(settings, keys)
    context = ServerContext(registry=registry, settings=settings, limits=Limits(settings))
    routes = [route for module in ROUTE_MODULES for route in module.routes(context)]
    return ServerApp(context, keys, [*routes, *openapi.routes(routes)])
