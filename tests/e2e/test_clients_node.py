"""OpenAI's own client for Node against a running server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.arch.source_tree import ROOT
from tests.contract.serve.live_server import LiveServer
from tests.e2e.client_cases import MAX_TOKENS, QUESTION, SCHEMA, WEATHER_SCHEMA
from tests.e2e.conftest import SMALL_MODEL, is_idle

pytestmark = pytest.mark.real_model

CLIENT = "openai@7.59.0"
FOLDER = ROOT / "build" / "node_clients"
SCRIPT = Path(__file__).with_name("node_openai.cjs")
TIMEOUT_S = 600

CHAT = {
    "model": SMALL_MODEL,
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0,
    "max_tokens": MAX_TOKENS,
}
BODIES: dict[str, Any] = {
    "chat": CHAT,
    "endless": {**CHAT, "max_tokens": 3000, "ignore_eos": True},
    "tool": {
        **CHAT,
        "max_tokens": 80,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA}}],
    },
    "schema": {
        **CHAT,
        "max_tokens": 80,
        "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA, "strict": True}},
    },
    "text": {"model": SMALL_MODEL, "prompt": "The capital of France is", "max_tokens": 5, "temperature": 0},
    "refused": {
        "value": {**CHAT, "temperature": 1000},
        "field": {**CHAT, "no_such_field": 1},
        "model": {**CHAT, "model": "missing"},
        "length": {**CHAT, "max_tokens": 100_000},
        "late": {**CHAT, "deadline_ms": 0.001},
    },
}


@pytest.fixture(scope="module")
def found(smollm2_server: LiveServer) -> dict[str, Any]:
    """What the client was told; it is installed on first use."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed")
    modules = FOLDER / "node_modules"
    if not (modules / CLIENT.partition("@")[0]).is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", "--prefix", str(FOLDER)]
        subprocess.run(["npm", "install", *options, CLIENT], check=True, timeout=TIMEOUT_S, capture_output=True)
    run = subprocess.run(
        ["node", str(SCRIPT), f"{smollm2_server.url}/v1"],
        input=json.dumps(BODIES),
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def content_of(reply: dict[str, Any]) -> Any:
    return reply["choices"][0]["message"]["content"]


def test_plain(found: dict[str, Any], smollm2_text: str) -> None:
    assert content_of(found["plain"]) == smollm2_text
    assert found["plain"]["usage"]["completion_tokens"] <= MAX_TOKENS
    assert found["plain"]["subsecond"]["kernels"]
    assert found["contentType"] == "application/json"
    assert found["models"] == [SMALL_MODEL]


def test_streams(found: dict[str, Any], smollm2_text: str) -> None:
    streamed = found["streamed"]
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed["chunks"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == smollm2_text
    assert content_of(streamed["final"]) == smollm2_text
    assert streamed["numDeltas"] > 3
    assert streamed["last"]["choices"] == []
    assert streamed["last"]["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("name", ["tool", "toolStream"])
def test_tools(found: dict[str, Any], name: str) -> None:
    choice = found[name]["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Oslo")


def test_schema(found: dict[str, Any]) -> None:
    assert set(json.loads(content_of(found["schema"]))) == {"city", "rank"}
    assert set(found["parsed"]) == {"city", "rank"}


def test_logprobs_and_samples(found: dict[str, Any], smollm2_text: str) -> None:
    entries = found["logprobs"]["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == smollm2_text
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert len({choice["message"]["content"] for choice in found["samples"]["choices"]}) > 1


def test_texts(found: dict[str, Any]) -> None:
    text = found["text"]["choices"][0]["text"]
    assert text
    assert "".join(chunk["choices"][0]["text"] for chunk in found["textStream"]) == text


def test_errors(found: dict[str, Any]) -> None:
    refused = found["refused"]
    assert refused["value"] == {"kind": "BadRequestError", "status": 400, "code": None, "param": "temperature"}
    assert refused["field"]["param"] == "no_such_field"
    assert refused["model"]["kind"] == "NotFoundError"
    assert refused["length"]["code"] == "context_length_exceeded"
    assert refused["late"]["kind"] == "RateLimitError"


def test_leaving(found: dict[str, Any], smollm2_server: LiveServer) -> None:
    assert found["left"] == {"numChunks": 3, "name": "APIUserAbortError"}
    while not is_idle(smollm2_server):
        time.sleep(0.01)
