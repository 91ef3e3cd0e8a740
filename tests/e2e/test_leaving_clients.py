"""Clients that go away at any byte leave nothing behind; more requests than the memory holds all get their answers."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import subsecond
from subsecond.serve.registry import Loaded, ModelSpec
from tests.contract.serve.live_server import LiveServer
from tests.e2e.conftest import SMALL_MODEL, SmallModelLoader, engine_stats, is_idle

pytestmark = pytest.mark.real_model
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Count to one hundred."}], "max_tokens": 200},
    "/v1/completions": {"prompt": "One, two, three,", "max_tokens": 200},
    "/v1/messages": {"messages": [{"role": "user", "content": "Count to one hundred."}], "max_tokens": 200},
    "/v1/responses": {"input": "Count to one hundred.", "max_output_tokens": 200},
    "/api/chat": {"messages": [{"role": "user", "content": "Count to one hundred."}]},
}
WAIT_S = 30.0


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[LiveServer]:
    with LiveServer([SMALL_MODEL], loader=SmallModelLoader(smollm2_path)) as live:
        yield live


def wait_until(is_true: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + WAIT_S
    while not is_true():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True


def request_bytes(route: str, *, stream: bool) -> bytes:
    body = json.dumps({"model": SMALL_MODEL, "stream": stream, **ROUTES[route]}).encode()
    head = (
        f"POST {route} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


def leave_somewhere(server: LiveServer, seed: int) -> None:
    """Send a request or a part of it, read some bytes of the answer or none, and go."""
    choose = random.Random(seed)
    sent = request_bytes(choose.choice(list(ROUTES)), stream=choose.random() < 0.7)
    is_whole = choose.random() < 0.8
    with server.connect() as connection, suppress(ConnectionError):
        connection.sendall(sent if is_whole else sent[: choose.randrange(len(sent))])
        left = choose.choice((0, 1, 100, choose.randrange(3000)))
        connection.settimeout(choose.choice((0.05, 1.0)))
        with suppress(TimeoutError):
            while is_whole and left > 0 and (data := connection.recv(left)):
                left -= len(data)


def counted(server: LiveServer) -> dict[str, int]:
    """What a leak would make more of."""
    num_tasks: list[int] = []
    server.call_in_loop(lambda: num_tasks.append(len(asyncio.all_tasks())))
    names = [thread.name for thread in threading.enumerate()]
    # the pool that prepares prompts makes its threads when all it has are busy, up to its bound
    num_threads = sum("subsecond" in name and "subsecond-prompts" not in name for name in names)
    return {"tasks": num_tasks[0], "files": len(list(Path("/proc/self/fd").iterdir())), "threads": num_threads}


def check_leaving(server: LiveServer, num_disconnects: int, num_cancels: int) -> None:
    with server.client() as client:
        assert client.post("/v1/completions", json={"model": SMALL_MODEL, "prompt": "Hi", "max_tokens": 2}).is_success
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: leave_somewhere(server, seed), range(16)))  # whatever is made once is there now
    assert wait_until(lambda: is_idle(server)), engine_stats(server)
    time.sleep(0.2)
    before = counted(server)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: leave_somewhere(server, seed), range(100, 100 + num_disconnects)))
        list(pool.map(lambda seed: cancel_stream(server, seed), range(num_cancels)))
    assert wait_until(lambda: is_idle(server)), engine_stats(server)
    assert wait_until(lambda: all(counted(server)[name] <= count for name, count in before.items())), (
        before,
        counted(server),
    )


def cancel_stream(server: LiveServer, seed: int) -> None:
    """Read some events with a client library's own stream and close it."""
    choose = random.Random(seed)
    body = {"model": SMALL_MODEL, "stream": True, **ROUTES["/v1/chat/completions"]}
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        for _ in zip(range(choose.randrange(1, 12)), response.iter_lines(), strict=False):
            pass


def test_clients_that_leave_leave_nothing(server: LiveServer) -> None:
    check_leaving(server, 30, 10)


@pytest.mark.acceptance
def test_500_disconnects_and_200_cancels_leave_nothing(server: LiveServer) -> None:
    check_leaving(server, 500, 200)


class TightLoader(SmallModelLoader):
    """Keys and values for 512 tokens, all requests together."""

    def load(self, spec: ModelSpec) -> Loaded:
        self.model = subsecond.load(self._path, context_tokens=512)
        return Loaded(self.estimate_bytes(spec), model=self.model)


def complete(server: LiveServer, number: int) -> Any:
    prompt = f"{number} times {number + 1} is a number. " * 4
    body = {"model": SMALL_MODEL, "prompt": prompt, "max_tokens": 90, "ignore_eos": True, "temperature": 0}
    with server.client() as client:
        response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def test_requests_beyond_the_memory_of_keys_and_values_all_get_their_answers(smollm2_path: Path) -> None:
    with LiveServer([SMALL_MODEL], loader=TightLoader(smollm2_path)) as server:
        alone = [complete(server, number) for number in range(8)]
        assert engine_stats(server).num_preemptions == 0
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda number: complete(server, number), range(8)))
        assert engine_stats(server).num_preemptions > 0
        assert together == alone
        assert is_idle(server)
