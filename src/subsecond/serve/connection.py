"""One connection of a client: bounds on how slowly it may speak and listen, which the web server itself has none of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from subsecond.core.errors import InputError
from subsecond.serve.errors import error_body

if TYPE_CHECKING:
    from subsecond.serve.app import ServerApp

MAX_HEAD_BYTES = 2**16


class Connection(HttpToolsProtocol):
    """Closes itself when a request's head is too slow or too long, and when the client takes nothing of its answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take up a connection, unless there are too many."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._settings = cast("ServerApp", self.app).context.settings
        self._num_head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self._settings.max_connections:
            self.transport.abort()
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the timers."""
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; from the first byte of a request its head has a time within which it has to be here."""
        cycle: RequestResponseCycle | None = self.cycle
        if self._head_timer is None and (cycle is None or cycle.response_complete):
            self._head_timer = self.loop.call_later(self._settings.body_timeout_s, self.transport.abort)
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, f"the head of the request is larger than {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Begin the answer; what follows is the body, which has bounds of its own."""
        self._stop_head_timer()
        self._num_head_bytes = -(2**62)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next byte begins another head."""
        self._num_head_bytes = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client is behind: it has a while to take something."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._settings.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It took something."""
        self._stop_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form that all refusals have."""
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        body = msgspec.json.encode(error_body(InputError(message)))
        reason = "Bad Request" if status == 400 else "Request Header Fields Too Large"
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
