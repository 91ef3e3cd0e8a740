"""A client of /v1/completions that costs little: one connection a request, the times of its tokens, none of the text.

It reads server-sent events and takes one with text or token ids for a token, or for several that came together; how
many tokens there were is what the server says at the end.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

from bench.timing import PeerError

LOCAL_HOST = "127.0.0.1"
MAX_ERROR_CHARS = 500
EVENT_END = b"\n\n"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and the key that it is to be given."""

    port: int
    host: str = LOCAL_HOST
    api_key: str | None = None

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The bytes of one request on a connection of its own."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", "Connection: close"]
        if self.api_key is not None:
            lines.append(f"Authorization: Bearer {self.api_key}")
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(slots=True)
class Answer:
    """One streamed answer as it came; times are those of time.perf_counter()."""

    start_s: float = 0.0
    end_s: float = 0.0
    stamps_s: list[float] = field(default_factory=list)  # of the events with tokens
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_cached_tokens: int | None = None  # None where the server does not say
    finish_reason: str | None = None

    @property
    def ttft_ms(self) -> float:
        """From the request to the first token."""
        return (self.stamps_s[0] - self.start_s) * 1e3

    @property
    def gaps_ms(self) -> list[float]:
        """Between the events."""
        pairs = zip(self.stamps_s, self.stamps_s[1:], strict=False)
        return [(after - before) * 1e3 for before, after in pairs]


class Exchange(asyncio.Protocol):
    """Sends one request and fills an Answer; `done` is set once the answer has ended, or fails with a PeerError."""

    def __init__(self, request: bytes, answer: Answer, done: asyncio.Future[None]) -> None:
        self._request = request
        self._answer = answer
        self._done = done
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._now = 0.0
        self._is_over = False  # the stream said so; the response may end with the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)
        self._answer.start_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """All events of one packet get one time."""
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that has not ended by then has failed."""
        if self._is_over:
            self._end()
        reason = self._rest.decode(errors="replace")[:MAX_ERROR_CHARS]
        self._fail(f"connection closed before the end: {exc or reason or 'no reason given'}")

    def on_body(self, body: bytes) -> None:
        """Take the events that are complete."""
        self._rest += body
        if self._parser.get_status_code() != 200:
            return
        *events, self._rest = self._rest.replace(b"\r\n", b"\n").split(EVENT_END)
        for event in events:
            self._take(event)

    def on_message_complete(self) -> None:
        """The whole response is there."""
        status = self._parser.get_status_code()
        if status != 200:
            self._fail(f"status {status}: {self._rest.decode(errors='replace')[:MAX_ERROR_CHARS]}")
        self._end()

    def hang_up(self) -> None:
        """Close the connection, whatever the server still has to say."""
        if self._transport is not None:
            self._transport.close()

    def _end(self) -> None:
        if self._answer.finish_reason is None:
            self._fail("the response ended without a finish reason")
        elif not self._done.done():
            self._done.set_result(None)

    def _take(self, event: bytes) -> None:
        data = b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")).strip()
        if data == b"[DONE]":
            self._is_over = True
        if not data or self._is_over:
            return
        found = json.loads(data)
        if "error" in found:
            self._fail(f"error in the stream: {str(found['error'])[:MAX_ERROR_CHARS]}")
            return
        answer = self._answer
        for choice in found.get("choices") or ():
            if choice.get("text") or choice.get("token_ids"):
                answer.stamps_s.append(self._now)
            if choice.get("finish_reason"):
                answer.finish_reason = choice["finish_reason"]
                answer.end_s = self._now
        if found.get("usage"):
            self._take_usage(found["usage"])

    def _take_usage(self, usage: dict[str, Any]) -> None:
        self._answer.num_prompt_tokens = usage["prompt_tokens"]
        self._answer.num_new_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        self._answer.num_cached_tokens = details.get("cached_tokens")

    def _fail(self, reason: str) -> None:
        if not self._done.done():
            self._done.set_exception(PeerError(reason))


async def complete(address: Address, body: bytes, answer: Answer | None = None) -> Answer:
    """Stream one completion to its end; hangs up when cancelled. PeerError if the server does not answer it."""
    answer = Answer() if answer is None else answer
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    request = address.request("POST", "/v1/completions", body)
    try:
        _, exchange = await loop.create_connection(lambda: Exchange(request, answer, done), address.host, address.port)
    except OSError as error:
        raise PeerError(f"cannot connect to port {address.port}: {error}") from None
    try:
        await done
    finally:
        exchange.hang_up()
        if done.done() and not done.cancelled():
            done.exception()  # it has been raised, or nobody waits for it any more
    return answer


def check(answer: Answer, num_prompt_tokens: int, num_new_tokens: int) -> None:
    """Raise PeerError unless the server read and answered as many tokens as it was asked to."""
    found = (answer.num_prompt_tokens, answer.num_new_tokens)
    if found != (num_prompt_tokens, num_new_tokens):
        raise PeerError(f"{found} tokens of prompt and answer instead of {(num_prompt_tokens, num_new_tokens)}")
    if not answer.stamps_s:
        raise PeerError(f"{num_new_tokens} tokens came without text or token ids, so that they cannot be timed")


async def run_streams(address: Address, bodies: Sequence[Sequence[bytes]]) -> list[list[Answer]]:
    """For each stream the answers to its bodies, each sent when the one before has been answered; all streams at once.

    The first request that fails ends all of them, with its PeerError.
    """

    async def stream(of_stream: Sequence[bytes]) -> list[Answer]:
        return [await complete(address, body) for body in of_stream]

    tasks = [asyncio.create_task(stream(of_stream)) for of_stream in bodies]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
