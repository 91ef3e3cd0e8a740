"""The server as one ASGI application: the gate that every request passes, and the routes behind it."""

from __future__ import annotations

import itertools
import secrets
from contextlib import nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from subsecond.serve import health, openai_chat, responses
from subsecond.serve.auth import ApiKeys, Doorkeeper
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import ClientGoneError, UnavailableError, error_response, public_error, style_of
from subsecond.serve.limits import Limits
from subsecond.serve.registry import ModelRegistry
from subsecond.serve.routing import ApiRoute, RouteTable
from subsecond.serve.settings import ServeSettings

ROUTE_MODULES = (health, openai_chat, responses)
REQUEST_ID_HEADER = "x-request-id"


class ServerApp:
    """Answers every request: checks who asks, finds the route, and turns whatever goes wrong into an answer."""

    def __init__(self, context: ServerContext, keys: ApiKeys, routes: list[ApiRoute]) -> None:
        self.context = context
        self.table = RouteTable(routes)
        self._doorkeeper = Doorkeeper(context.settings, keys)
        self._numbers = itertools.count(1)
        self._prefix = secrets.token_hex(4)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; nothing but cancellation leaves it."""
        assert scope["type"] == "http", "the server is started without lifespan events and web sockets"
        request_id = f"{self._prefix}-{next(self._numbers):x}"
        scope["subsecond.request_id"] = request_id
        sender = _Sender(send, request_id)
        lifecycle = self.context.lifecycle
        lifecycle.enter()
        try:
            await self._answer(scope, receive, sender)
        except ClientGoneError:
            pass  # and with it the one who would read what became of the request
        except Exception as error:
            told = public_error(error, request_id)
            if not sender.has_begun:
                await error_response(told, style_of(scope["path"]))(scope, receive, sender)
            # else the answer stays without its end, upon which the connection is closed
        finally:
            lifecycle.leave()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        request = Request(scope, receive, send)
        is_open = self._is_open(method, path)
        if not is_open:
            scope["subsecond.tenant"] = self._doorkeeper.tenant(Headers(scope=scope))
        route, scope["path_params"] = self.table.find(method, path)
        is_work = route.method == "POST"
        if is_work and self.context.lifecycle.phase == "draining":
            raise UnavailableError(
                "the server is stopping and takes no new requests; ask again at another one, or later",
                code="draining",
                retry_after_s=self.context.settings.drain_timeout_s,
            )
        with self.context.limits.admit() if is_work else nullcontext():
            response: Response = await route.handler(request)
            await response(scope, receive, send)

    def _is_open(self, method: str, path: str) -> bool:
        """Whether the path is one of the few that are answered without a key."""
        return path.startswith("/health/") and self.table.find(method, path)[0].is_open


class _Sender:
    """Passes an answer on with the number of its request, and knows whether it has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            MutableHeaders(scope=message)[REQUEST_ID_HEADER] = self._request_id
        await self._send(message)


def make_app(registry: ModelRegistry, settings: ServeSettings, keys: ApiKeys | None = None) -> ServerApp:
    """Return the server's application; `app.context` holds its parts."""
    context = ServerContext(registry=registry, settings=settings, limits=Limits(settings))
    routes = [route for module in ROUTE_MODULES for route in module.routes(context)]
    return ServerApp(context, keys or ApiKeys(), routes)
