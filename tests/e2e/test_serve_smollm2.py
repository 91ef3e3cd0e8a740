"""The server as a process with real weights: models come and go within a budget, and the end loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.real_model
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`subsecond serve` and a client of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "subsecond", "serve", *arguments, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            with httpx.Client(base_url=json.loads(line)["address"], timeout=300) as client:
                yield process, client
        finally:
            process.kill()


def ask(client: httpx.Client, model: str) -> str:
    body = {"model": model, "messages": QUESTION, "max_tokens": 16, "temperature": 0}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_models_take_turns_within_the_memory_budget_and_a_signal_lets_an_answer_end(smollm2_path: Path) -> None:
    # each holds about 98 MB of weights and 47 MB of keys and values, so there is room for one and not for two
    names = [f"{name}={smollm2_path}" for name in ("first", "second")]
    with serving(*names, "--context-tokens", "1024", "--memory-budget-mb", "200") as (process, client):

        def loaded() -> list[str]:
            return [item["id"] for item in client.get("/v1/models").json()["data"] if item["subsecond"]["is_loaded"]]

        assert loaded() == ["first"]
        text = ask(client, "first")
        assert "Paris" in text
        assert ask(client, "second") == text
        assert loaded() == ["second"]
        assert ask(client, "first") == text
        assert loaded() == ["first"]

        body = {"model": "first", "messages": QUESTION, "max_tokens": 60, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        reasons = [choice["finish_reason"] for line in events[:-1] for choice in json.loads(line[6:])["choices"]]
        assert reasons[-1] == "length"
        assert process.wait(120) == 0
