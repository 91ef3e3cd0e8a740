"""What every route of the server is given: the models, the settings, the bounds, the numbers and who asks."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.requests import Request

from subsecond.serve.body import check_content_type, decode_beside, read_body
from subsecond.serve.errors import style_of
from subsecond.serve.lifecycle import Lifecycle
from subsecond.serve.limits import Limits
from subsecond.serve.metrics import Metrics
from subsecond.serve.registry import ModelRegistry, Served
from subsecond.serve.settings import ServeSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerContext:
    """One server's parts, handed to each module of routes; nothing of it is a module's own state."""

    registry: ModelRegistry
    settings: ServeSettings
    limits: Limits
    lifecycle: Lifecycle = field(default_factory=Lifecycle)

    @property
    def metrics(self) -> Metrics:
        """What is counted and timed."""
        return self.registry.metrics

    def lease(self, model: str) -> AbstractAsyncContextManager[Served]:
        """Hold a model for a request, loading it if need be; see `ModelRegistry.lease`.

        A streamed answer holds it inside its generator, so that it is held until the last piece.
        """
        return self.registry.lease(model)

    def tenant(self, request: Request) -> str:
        """Return whose request it is; cached blocks of one tenant's prompts never serve another's."""
        tenant: str = request.scope["subsecond.tenant"]
        return tenant

    def request_id(self, request: Request) -> str:
        """Return the number of a request, under which the log tells about it."""
        number: str = request.scope["subsecond.request_id"]
        return number

    async def read(self, request: Request, kind: type[T]) -> T:
        """Return the JSON body of a request as a struct, within the bounds of size and time.

        Raises:
            FieldError: the body is no such object; it names the field.
            BodyTooLargeError, BodyTimeoutError, ContentTypeError, ClientGoneError: it cannot be read.
            OverloadedError: there are as many requests, or bytes of bodies, as there may be.
        """
        # people send Ollama's requests with curl -d, which says another type; pages cannot, as the gate sees to
        if style_of(request.scope["path"]) != "ollama":
            check_content_type(request)
        settings, holding = self.settings, request.scope["subsecond.holding"]
        body = await read_body(request, holding, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
        holding.take_place()
        return await decode_beside(body, kind)
