"""Clients that go away, and more of them than there is room for."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.contract.serve.live_server import LiveServer

CHAT: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "endless"}]}
NUM_CLIENTS = 12
ANSWERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "n": 3}),
    ("/v1/completions", {"model": "scripted", "prompt": "endless", "max_tokens": 3000}),
    (
        "/v1/completions",
        {"model": "scripted", "prompt": ["endless", "endless."], "max_tokens": 3000, "stream": True},
    ),
    ("/v1/messages", {**CHAT, "max_tokens": 3000}),
    ("/v1/messages", {**CHAT, "max_tokens": 3000, "stream": True}),
    ("/v1/responses", {"model": "scripted", "input": "endless", "store": False}),
    ("/v1/responses", {"model": "scripted", "input": "endless", "store": False, "stream": True}),
)


@pytest.fixture(scope="module")
def slow() -> Iterator[LiveServer]:
    """A server whose answers take their time."""
    with LiveServer(max_requests=NUM_CLIENTS) as live:
        live.model.answers["endless"] = "x" * 3000
        live.model.backend.step_s = 0.002
        yield live


def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.002)


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    )
    return head.encode() + b"\r\n\r\n" + content


def started(live: LiveServer, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has asked."""
    connection = live.connect()
    connection.sendall(request_bytes(path, body))
    return connection


def num_running(live: LiveServer) -> int:
    stats = live.model.engine.stats()
    return stats.num_running + stats.num_waiting


def assert_nothing_is_left(live: LiveServer) -> None:
    limits, lifecycle = live.app.context.limits, live.app.context.lifecycle
    wait_until(lambda: num_running(live) == 0 and limits.num_requests == 0 and lifecycle.num_running == 0)
    stats = live.model.engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    wait_until(lambda: not live.server._server.server_state.connections and not live.server._server.server_state.tasks)
    assert all(state.num_leases == 0 for state in live.app.context.registry.states())


@pytest.mark.parametrize(("path", "body"), ANSWERS)
def test_an_answer_ends_when_its_client_goes_away(slow: LiveServer, path: str, body: dict[str, Any]) -> None:
    with ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(started(slow, path, body))
        wait_until(lambda: slow.model.engine.stats().num_running >= 3)
    assert_nothing_is_left(slow)
    with slow.client() as client:
        chat = {**CHAT, "messages": [{"role": "user", "content": "say hi"}]}
        assert client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"] == "hi"


def test_a_client_that_goes_away_while_its_model_is_loaded_leaves_nothing() -> None:
    with LiveServer(("scripted", "second")) as live:
        live.loader.hold.clear()
        with started(live, "/v1/chat/completions", {**CHAT, "model": "second"}):
            wait_until(lambda: live.app.context.registry.states()[1].num_leases == 1)
        live.loader.hold.set()
        wait_until(lambda: "second" in live.loader.models)
        assert_nothing_is_left(live)


def test_requests_beyond_the_bound_are_refused_and_told_when_to_come_back(slow: LiveServer) -> None:
    with ExitStack() as clients, slow.client() as client:
        for _ in range(NUM_CLIENTS):
            clients.enter_context(started(slow, "/v1/chat/completions", {**CHAT, "stream": True}))
        wait_until(lambda: slow.app.context.limits.num_requests == NUM_CLIENTS)
        refused = client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1" and refused.headers["retry-after-ms"] == "1000"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert client.post("/v1/messages", json={**CHAT, "max_tokens": 5}).json()["error"]["type"] == "rate_limit_error"
        for path in ("/health/ready", "/metrics", "/v1/models"):
            assert client.get(path).status_code == 200
    assert_nothing_is_left(slow)


def test_one_request_is_bounded_in_its_samples_and_their_tokens() -> None:
    with LiveServer(max_samples=4, max_answer_tokens=100) as live, live.client() as client:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "say hi"}]}
        assert client.post("/v1/chat/completions", json={**body, "n": 4, "max_tokens": 25}).status_code == 200
        assert client.post("/v1/chat/completions", json={**body, "max_tokens": 500}).status_code == 200  # one is free
        for more in ({"n": 5}, {"n": 0}, {"n": -1}, {"n": 4, "max_tokens": 26}, {"n": 2}, {"n": 2**70}):
            response = client.post("/v1/chat/completions", json={**body, **more})
            assert response.status_code == 400 and response.json()["error"]["param"] == "n", more


def test_many_clients_at_once_get_their_own_answers(slow: LiveServer) -> None:
    def ask(number: int) -> str:
        with slow.client() as client:
            chat = {**CHAT, "messages": [{"role": "user", "content": f"say number {number}"}]}
            content: str = client.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]
            return content

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        assert list(pool.map(ask, range(NUM_CLIENTS))) == [f"number {number}" for number in range(NUM_CLIENTS)]
    assert_nothing_is_left(slow)


def num_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def break_off(live: LiveServer, num_connections: int) -> None:
    """Connections of which each ends at a random byte, of its request or of its answer; then all is as before."""
    rng = random.Random(5)
    assert_nothing_is_left(live)
    num_before = num_descriptors()
    for number in range(num_connections):
        path, body = rng.choice(ANSWERS)
        request = request_bytes(path, body)
        with live.connect() as connection:
            if number % 3 == 0:
                connection.sendall(request[: rng.randrange(len(request))])
                continue
            connection.sendall(request)
            left = rng.randrange(4000) if body.get("stream") else 0
            while left > 0 and (data := connection.recv(min(left, 512))):
                left -= len(data)
    assert_nothing_is_left(live)
    wait_until(lambda: num_descriptors() <= num_before)


def test_connections_that_end_at_any_byte_leave_nothing(slow: LiveServer) -> None:
    break_off(slow, 60)


@pytest.mark.acceptance
def test_many_connections_that_end_at_any_byte_leave_nothing(slow: LiveServer) -> None:
    break_off(slow, 1000)
