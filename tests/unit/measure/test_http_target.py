"""Servers of many habits are asked in the form that they understand, and what they do wrong is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from subsecond.core.errors import InputError
from subsecond.measure.http_exchange import Origin
from subsecond.measure.http_target import HttpTarget, passage_words
from subsecond.measure.target import Reading, TargetError, Trace


@dataclass
class Canned:
    """A server that answers completions with given bytes.

    refuses    fields that it does not know, by what it says of them; "ids" for prompts that are no text
    """

    events: list[bytes] = field(default_factory=list)
    refuses: tuple[str, ...] = ()
    is_chunked: bool = True
    metrics: str = ""
    key: str | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            path = head[0].split(" ")[1]
            headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:] if line}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
                await self._send(writer, 401, [b"who are you"])
            elif path == "/v1/models":
                await self._send(writer, 200, [json.dumps({"data": [{"id": "the model"}]}).encode()])
            elif path == "/metrics":
                await self._send(writer, 200 if self.metrics else 404, [self.metrics.encode()])
            else:
                await self._complete(writer, json.loads(body))
        finally:
            writer.close()

    async def _complete(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        self.bodies.append(body)
        kinds = set(body) | ({"ids"} if isinstance(body["prompt"], list) else set())
        if refused := kinds & set(self.refuses):
            await self._send(writer, 400, [f"unknown: {refused}".encode()])
        else:
            await self._send(writer, 200, self.events)

    async def _send(self, writer: asyncio.StreamWriter, status: int, pieces: list[bytes]) -> None:
        lines = [f"HTTP/1.1 {status} words of any kind", "Server: canned"]
        lines += ["Transfer-Encoding: chunked"] if self.is_chunked else []
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for piece in pieces:
            writer.write(f"{len(piece):x};x=y\r\n".encode() + piece + b"\r\n" if self.is_chunked else piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if self.is_chunked:
            writer.write(b"0\r\n\r\n")
            await writer.drain()


def event(**content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def text(piece: str, reason: str | None = None) -> bytes:
    return event(choices=[{"text": piece, "finish_reason": reason}])


USAGE = event(
    choices=[], usage={"prompt_tokens": 7, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
)
DONE = b"data: [DONE]\n\n"


def with_server(canned: Canned, use: Callable[[HttpTarget], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        server = await asyncio.start_server(canned.serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await use(HttpTarget(f"http://127.0.0.1:{port}/v1/", **options))

    return asyncio.run(run())


async def prepared_ask(target: HttpTarget) -> Trace:
    await target.prepare()
    return await target.ask((5, 6, 7), 4)


@pytest.mark.parametrize("is_chunked", [True, False])
def test_tokens_are_counted_by_the_server_and_timed_by_event(is_chunked: bool) -> None:
    canned = Canned([text("a"), text("bc") + text("")[:20], text("")[20:], text("d", "length"), USAGE, DONE])
    canned.is_chunked = is_chunked
    trace = with_server(canned, prepared_ask)
    assert trace.error is None and len(trace.stamps_s) == 3
    assert (trace.num_prompt_tokens, trace.num_new_tokens, trace.num_cached_tokens) == (7, 4, 3)
    assert trace.start_s < trace.stamps_s[0] <= trace.stamps_s[1] < trace.stamps_s[2]
    asked = canned.bodies[-1]
    assert asked["prompt"] == [5, 6, 7] and asked["max_tokens"] == 4 and asked["model"] == "the model"
    assert asked["ignore_eos"] is True and asked["temperature"] == 0 and asked["stream"] is True


def test_lines_may_end_as_on_other_systems() -> None:
    pieces = [piece.replace(b"\n", b"\r\n") for piece in (text("a"), text("b", "length"), USAGE, DONE)]
    assert len(with_server(Canned(pieces), prepared_ask).stamps_s) == 2


@pytest.mark.parametrize(
    ("refuses", "is_text", "has_extras"),
    [
        ((), False, True),
        (("ids",), True, True),
        (("ignore_eos",), False, False),
        (("ids", "stream_options"), True, False),
    ],
)
def test_a_server_is_asked_as_it_can_be(refuses: tuple[str, ...], is_text: bool, has_extras: bool) -> None:
    canned = Canned([text("a"), text("b", "length"), USAGE if has_extras else b"", DONE], refuses)

    async def use(target: HttpTarget) -> Any:
        trace = await prepared_ask(target)
        return trace, target.description

    trace, description = with_server(canned, use)
    asked = canned.bodies[-1]
    assert isinstance(asked["prompt"], str) is is_text and ("ignore_eos" in asked) is has_extras
    assert trace.num_new_tokens == (4 if has_extras else 2)
    assert description["prompts"] == ("text" if is_text else "token ids")
    assert description["server"] == "canned" and description["model"] == "the model"


def test_texts_share_what_the_ids_share_and_have_about_their_length() -> None:
    canned = Canned([text("a", "length"), USAGE, DONE], ("ids",))

    async def use(target: HttpTarget) -> list[str]:
        await target.prepare()  # 32 words are 7 tokens here
        return [target.text_of((1, 2, 3, 4, last)) for last in (5, 6)]

    first, second = with_server(canned, use)
    words = passage_words()
    assert first.split()[:5] == [words[token_id] for token_id in (1, 2, 3, 4, 5)]
    assert first.split()[:4] == second.split()[:4] and first != second
    assert len(first.split()) == round(5 * 32 / 7)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([text("a"), event(error={"message": "out of memory"})], "error in the stream.*out of memory"),
        ([text("a"), b"data: {x\n\n"], "an event that is no JSON"),
        ([text("a"), b"data: [1]\n\n"], "an event that is no object"),
        ([text("a")], "ended without a finish reason"),
        ([text("", "length"), USAGE, DONE], "came without text or token ids"),
    ],
)
def test_wrong_streams_are_told(pieces: list[bytes], message: str) -> None:
    canned = Canned([text("a", "length"), DONE])

    async def use(target: HttpTarget) -> None:
        await target.prepare()
        canned.events = pieces
        await target.ask((1,), 2)

    with pytest.raises(TargetError, match=message):
        with_server(canned, use)


def test_a_server_that_takes_no_form_is_told() -> None:
    with pytest.raises(TargetError, match="refuses completions: status 400: unknown"):
        with_server(Canned(refuses=("prompt",)), prepared_ask)


def test_a_key_is_sent_and_its_absence_told() -> None:
    canned = Canned([text("a", "length"), USAGE, DONE], key="secret")
    assert with_server(canned, prepared_ask, api_key="secret").num_new_tokens == 4
    with pytest.raises(TargetError, match="status 401: who are you; set SUBSECOND_API_KEY"):
        with_server(canned, prepared_ask)


def test_nobody_there_is_told() -> None:
    with pytest.raises(TargetError, match=r"cannot connect to 127\.0\.0\.1 port 9"):
        asyncio.run(HttpTarget("http://127.0.0.1:9").prepare())


def test_counts_are_read_where_a_server_has_them() -> None:
    metrics = """# HELP x y
vllm:kv_cache_usage_perc{model_name="other",engine="0"} 0.5
vllm:kv_cache_usage_perc{model_name="the model",engine="0"} 0.125
vllm:num_requests_running{model_name="the model"} 2.0
vllm:num_requests_waiting{model_name="the model"} 1.0
"""

    async def use(target: HttpTarget) -> Reading:
        await target.prepare()
        return await target.reading()

    events = [text("a", "length"), USAGE, DONE]
    found = with_server(Canned(events, metrics=metrics), use)
    assert found.kv_usage_ratio == 0.125 and found.num_open == 3
    assert with_server(Canned(events), use) == Reading()


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:80", Origin("127.0.0.1", 80)),
        ("http://[::1]:8000/v1/", Origin("::1", 8000)),
        ("https://example.org/api/v1", Origin("example.org", 443, True, "/api")),
    ],
)
def test_addresses(url: str, origin: Origin) -> None:
    assert Origin.parse(url) == origin


@pytest.mark.parametrize(
    "url", ["", "example.org", "ftp://x", "http://", "http://x:y", "http://x/a b", "http://u@x", "http://x?y"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        Origin.parse(url)


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"x" * 70000]
)
def test_what_is_no_http_is_told(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            await HttpTarget(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}").prepare()

    with pytest.raises(TargetError):
        asyncio.run(run())
