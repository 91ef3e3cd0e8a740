"""Whether events are written as the standard asks, begun before the status, and kept alive while nothing comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from subsecond.core.errors import InputError
from subsecond.serve.sse import BEGUN, COMMENT, DONE, EventStream, begun, error_event, event


def test_an_event_is_one_line_of_json() -> None:
    assert event({"text": "a\nb\r\u2028"}) == b'data: {"text":"a\\nb\\r\xe2\x80\xa8"}\n\n'
    assert event({"a": 1}, "named") == b'event: named\ndata: {"a":1}\n\n'


def test_an_error_is_an_event_in_the_form_of_its_api() -> None:
    assert error_event(InputError("wrong")).startswith(b'data: {"error":{"message":"wrong"')
    assert error_event(InputError("wrong"), "anthropic", "error").startswith(b'event: error\ndata: {"type":"error"')


async def events(hold: asyncio.Event | None, *pieces: bytes, refused: bool = False) -> AsyncGenerator[bytes, None]:
    if refused:
        raise InputError("refused")
    yield BEGUN
    for piece in pieces:
        if hold is not None:
            await hold.wait()
        yield piece


def sent_by(*pieces: bytes, num_comments: int = 0) -> list[dict[str, Any]]:
    """What a stream sends that gives its pieces after so many comments."""

    async def run() -> list[dict[str, Any]]:
        hold, gone, messages = asyncio.Event(), asyncio.Event(), []

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)
            if sum(each.get("body") == COMMENT for each in messages) >= num_comments:
                hold.set()

        source = await begun(events(hold if num_comments else None, *pieces))
        await EventStream(source, keep_alive_s=0.001)({"type": "http"}, receive, send)
        await asyncio.sleep(0.01)
        return messages

    return asyncio.run(run())


def test_a_stream_ends_with_an_empty_body() -> None:
    messages = sent_by(b"data: 1\n\n", DONE)
    assert messages[0]["status"] == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in messages[0]["headers"]
    assert [message["body"] for message in messages[1:]] == [b"data: 1\n\n", DONE, b""]
    assert messages[-1]["more_body"] is False


def test_comments_come_while_nothing_else_does_and_never_after_the_end() -> None:
    bodies = [message["body"] for message in sent_by(b"data: 1\n\n", num_comments=3)[1:]]
    assert bodies.count(COMMENT) >= 3
    assert bodies[:3] == [COMMENT] * 3
    assert bodies[-1] == b""
    assert COMMENT.startswith(b":")
    assert COMMENT.endswith(b"\n\n")


def test_what_is_refused_before_the_first_event_is_raised() -> None:
    with pytest.raises(InputError, match="refused"):
        asyncio.run(begun(events(None, refused=True)))
