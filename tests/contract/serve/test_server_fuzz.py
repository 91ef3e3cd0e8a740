"""Valid requests of every route, damaged at random: each is answered or refused by name, and none fails.

The damage is the same in every run; the marker `acceptance` has more of it.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import httpx
import pytest

from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.wire_cases import until

SAY_HI = {"role": "user", "content": "say hi"}
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}, SAY_HI]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FUNCTION = {"name": "look", "description": "d", "parameters": SCHEMA}
SAMPLING: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 7,
    "stop": ["zz"],
    "deadline_ms": 60000,
    "priority": 1,
}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "scripted",
        "messages": CHAT,
        "max_tokens": 4,
        **SAMPLING,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "logit_bias": {"5": 1},
        "stream": False,
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "/v1/completions": {
        "model": "scripted",
        "prompt": ["say hi", "say ho"],
        "max_tokens": 4,
        **SAMPLING,
        "echo": True,
        "logprobs": 2,
        "stop_token_ids": [3],
    },
    "/v1/responses": {
        "model": "scripted",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "say hi"}]}],
        "instructions": "be brief",
        "max_output_tokens": 4,
        "store": False,
        "tools": [{"type": "function", **FUNCTION}],
        "text": {"format": {"type": "text"}},
        "temperature": 0.5,
    },
    "/v1/messages": {
        "model": "scripted",
        "max_tokens": 4,
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "say hi"}]}],
        "stop_sequences": ["zz"],
        "tools": [{"name": "look", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"},
        "temperature": 0.5,
    },
    "/v1/embeddings": {"model": "embedding", "input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 8},
    "/tokenize": {"model": "scripted", "prompt": "say hi", "add_special_tokens": True, "return_token_strs": True},
    "/detokenize": {"model": "scripted", "tokens": [1, 2, 3]},
    "/api/chat": {
        "model": "scripted",
        "messages": [{"role": "user", "content": "say hi"}],
        "stream": False,
        "options": {"num_predict": 4, "temperature": 0.5, "seed": 3, "top_k": 5, "stop": ["zz"]},
        "tools": [{"type": "function", "function": FUNCTION}],
    },
    "/api/generate": {"model": "scripted", "prompt": "say hi", "stream": False, "options": {"num_predict": 4}},
    "/api/embed": {"model": "embedding", "input": ["a", "b"]},
    "/api/show": {"model": "scripted"},
}
NUMBERS = (0, 1, -1, 2**31, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, 5e-324)
TEXTS = ("", "x", " ", "\x00", "\ud7ff", "💩" * 20, "<|start|>assistant\n<|end|>", "scripted", "x" * 5000, "(a+)+b")
WORDS = ("auto", "none", "user", "tool", "function")
LISTS: tuple[list[Any], ...] = ([], [[]], [None], [{}], [0] * 100, ["", "a"], [1e9])
OBJECTS: tuple[dict[str, Any], ...] = ({}, {"": 0}, {"type": "text"}, {"type": "function"})
EDGES: tuple[Any, ...] = (None, True, False, *NUMBERS, *TEXTS, *WORDS, *LISTS, *OBJECTS)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside a value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def damage(body: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy of which one to three places are replaced, left out, renamed or doubled."""
    damaged = copy.deepcopy(body)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(places(damaged) or [("model",)])
        parent: Any = damaged
        for key in path[:-1]:
            parent = parent[key]
        kind, key = rng.randrange(5), path[-1]
        if key not in parent if isinstance(parent, dict) else key >= len(parent):
            continue
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key)
        elif kind == 2 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(rng.choice(EDGES))
    return damaged


def run(live: LiveServer, num_requests: int) -> None:
    rng = random.Random(20261127)
    statuses: dict[str, list[int]] = {path: [] for path in BODIES}
    with live.client() as client:
        for path, body in BODIES.items():
            response = client.post(path, json=body)
            assert response.status_code == 200, (path, response.text)
        for number in range(num_requests):
            path = rng.choice(list(BODIES))
            body = damage(BODIES[path], rng)
            check(client, path, body, statuses[path])
            if number % 20 == 0:
                answer = client.post("/v1/chat/completions", json={"model": "scripted", "messages": CHAT[2:]})
                assert answer.json()["choices"][0]["message"]["content"] == "hi"
    assert all(200 in found and 400 in found for found in statuses.values() if len(found) > 100)
    engine = live.model.engine
    # an answer that a stop string ended is told before the engine has heard of it
    until(lambda: engine.stats().num_running + engine.stats().num_waiting == 0)
    stats = engine.stats()
    assert stats.num_failed_steps == 0
    assert stats.num_free_blocks == stats.num_blocks


def check(client: httpx.Client, path: str, body: dict[str, Any], statuses: list[int]) -> None:
    content = json.dumps(body)
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    statuses.append(response.status_code)
    assert response.status_code in (200, 400, 404, 429), (path, content[:2000], response.text[:500])
    if response.status_code == 400:
        told = response.json()["error"]
        message = told if isinstance(told, str) else told["message"]
        assert message and len(message) < 2000 and "Traceback" not in message, (path, content[:2000])


def test_damaged_requests_are_answered_or_refused() -> None:
    with LiveServer() as live:
        run(live, 400)


@pytest.mark.acceptance
def test_many_damaged_requests_are_answered_or_refused() -> None:
    with LiveServer() as live:
        run(live, 20_000)
