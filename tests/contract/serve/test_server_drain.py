"""The end of a server: answers that run are finished, new requests go elsewhere, and nothing waits for ever."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.contract.serve.live_server import LiveServer, ScriptedLoader
from tests.contract.serve.wire_cases import until

CHAT: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "say a long text"}]}


@contextmanager
def held_stream(live: LiveServer) -> Iterator[tuple[httpx.Client, Iterator[str]]]:
    """A streamed answer of which the first event has come, with the engine held before its next step."""
    backend = live.model.backend
    backend.hold_after = 3
    with (
        live.client() as client,
        client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as stream,
    ):
        lines = (line for line in stream.iter_lines() if line.startswith("data: "))
        next(lines)
        until(lambda: not backend.hold.is_set())
        try:
            yield client, lines
        finally:
            backend.hold.set()


def text_of(lines: Iterator[str]) -> str:
    """The text of the events that are left; the last of them has to say that it is the last."""
    events = list(lines)
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_a_draining_server_finishes_what_runs_and_takes_nothing_new() -> None:
    with LiveServer() as live, live.client() as other:
        with held_stream(live) as (_, lines):
            live.begin_stop()
            while (ready := other.get("/health/ready")).status_code == 200:
                pass
            assert ready.json() == {"status": "not ready", "reason": "the server is stopping"}
            assert other.get("/health/live").status_code == 200
            assert other.get("/v1/models").status_code == 200
            refused = other.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
            assert refused.json()["error"]["code"] == "draining"
            refused = other.post("/v1/messages", json={**CHAT, "max_tokens": 5})
            assert refused.json()["error"]["type"] == "overloaded_error"
            live.model.backend.hold.set()
            assert text_of(lines).endswith("long text")
        live.stop()
        assert live.error is None and live.model.is_closed
        with pytest.raises(httpx.ConnectError):
            httpx.get(live.url)


def test_an_idle_server_ends_at_once() -> None:
    with LiveServer(drain_timeout_s=10_000) as live:
        with live.client() as client:
            client.get("/v1/models")
            live.stop()  # with a connection that is kept alive
        assert live.error is None and live.model.is_closed


def test_a_drain_has_an_end() -> None:
    with LiveServer(drain_timeout_s=0.2) as live:
        live.model.backend.step_s = 0.05
        live.model.answers["long text"] = "x" * 3000
        with (
            live.client() as client,
            client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as it,
        ):
            lines = it.iter_lines()
            next(lines)
            live.begin_stop()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        live.stop()
        assert live.error is None and live.model.is_closed
        assert live.app.context.metrics.of("scripted").num_ends == {"cancelled": 1}


def test_a_second_signal_ends_at_once() -> None:
    forced = threading.Event()
    live = LiveServer(drain_timeout_s=10_000, on_forced=forced.set)
    with held_stream(live) as (_, lines):
        live.server.stop()
        live.server.stop()
        live._thread.join(60)
        assert not live._thread.is_alive() and forced.is_set() and live.server.is_forced
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    live.model.close()


def test_a_server_that_is_stopped_while_it_loads_is_never_ready() -> None:
    loader = ScriptedLoader()
    loader.hold.clear()
    live = LiveServer(loader=loader, is_ready=False)
    while live.server._loop is None or not live.server._server.started:
        pass
    live.begin_stop()
    loader.hold.set()
    live.stop()
    assert live.error is None and not live.was_ready
    assert all(model.is_closed for model in loader.models.values())


def test_a_server_runs_on_the_fast_event_loop_and_parser(server: LiveServer) -> None:
    assert type(server.server._loop).__module__ == "uvloop"
    assert issubclass(server.server._server.config.http_protocol_class, HttpToolsProtocol)
