"""The client of a running request: work that ends with it, and an answer that is streamed to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from subsecond.serve.errors import ClientGoneError

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` comes to, or cancel it and raise ClientGoneError as soon as the client goes away.

    To be used after the body has been read, around what takes long:
    `answers = await while_connected(request, answer.collect())`.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_until_gone(request.receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError("the client closed the connection before its answer was ready")
    finally:
        for task in (working, watching):
            task.cancel()
        # until the work has let go of what it holds
        await asyncio.gather(working, watching, return_exceptions=True)


class StreamedResponse(Response):
    """An answer that is sent piece by piece as `pieces` gives them; the client's going away closes the generator."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = "text/event-stream",
    ) -> None:
        self._pieces = pieces
        self.status_code = status_code
        self.media_type = media_type
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send everything, or stop when nobody listens."""
        sending = asyncio.ensure_future(self._send_all(send))
        watching = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, watching):
                task.cancel()
            await asyncio.gather(sending, watching, return_exceptions=True)
            await self._pieces.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
