"""Server-sent events: how they are written, kept alive while nothing comes, and begun so that errors have a status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.types import Receive, Scope, Send

from subsecond.core.errors import SubsecondError
from subsecond.serve.client import StreamedResponse
from subsecond.serve.errors import ApiStyle, error_body

KEEP_ALIVE_S = 15.0
DONE = b"data: [DONE]\n\n"
COMMENT = b": still computing\n\n"
BEGUN = b""
"""What a generator of events yields first, once nothing can be refused any more."""

_encode = msgspec.json.Encoder().encode


def event(value: object, name: str | None = None) -> bytes:
    """Return one event with a value as JSON, by its name where the API names events."""
    data = _encode(value)
    return b"data: " + data + b"\n\n" if name is None else f"event: {name}\ndata: ".encode() + data + b"\n\n"


def error_event(error: SubsecondError, style: ApiStyle = "openai", name: str | None = None) -> bytes:
    """Return the event that tells of an error in the middle of a stream, which ends with it."""
    return event(error_body(error, style), name)


async def begun(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Run a generator to its first event, which is BEGUN, and return it; what it raises before is raised here.

    It can take up what it needs (a model, an answer) by itself and is closed in any case once it has begun, so
    nothing is left behind; and a request that is refused gets an HTTP status instead of an event.
    """
    first = await anext(events)
    assert first == BEGUN, "a generator of events yields BEGUN first"
    return events


class EventStream(StreamedResponse):
    """A stream of events; while none come, comments keep proxies and clients from giving up."""

    def __init__(self, events: AsyncGenerator[bytes, None], *, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        super().__init__(events)
        self._keep_alive_s = keep_alive_s
        self._is_quiet = False
        self._is_open = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when nobody listens."""
        commenting = asyncio.ensure_future(self._comment(send))
        try:
            await super().__call__(scope, receive, send)
        finally:
            commenting.cancel()
            await asyncio.gather(commenting, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._is_open = True
        async with aclosing(self._pieces) as events:
            async for each in events:
                self._is_quiet = False
                await send({"type": "http.response.body", "body": each, "more_body": True})
        self._is_open = False
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _comment(self, send: Send) -> None:
        while True:
            self._is_quiet = True
            await asyncio.sleep(self._keep_alive_s)
            if self._is_quiet and self._is_open:
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
