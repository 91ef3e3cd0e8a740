"""Every field of every body of Ollama's API has an effect, is refused by name, or is known harmless."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from subsecond.serve import ollama_types
from subsecond.serve.ollama_order import HARMLESS_OPTIONS
from tests.contract.serve.scripted_model import ScriptedModel
from tests.contract.serve.wire_cases import (
    Case,
    check_case,
    effect,
    harmless,
    has_deadline,
    has_priority,
    has_text,
    is_constrained,
    own_fields,
    param,
    prompt_differs,
    refused,
)

USER = {"role": "user", "content": "say one two three"}
ONE = {"options": {"seed": 1, "temperature": 0}}
CHAT = {"model": "scripted", "messages": [USER], "stream": False, **ONE}
GENERATE = {"model": "scripted", "prompt": "say one two three", "stream": False, **ONE}
EMBED = {"model": "embedding", "input": "one two"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"function": {"name": "weather", "arguments": {"city": "Bern"}}}


def option(**options: Any) -> dict[str, Any]:
    return {"options": {"seed": 1, "temperature": 0, **options}}


def setting(name: str, value: Any, **options: Any) -> Case:
    return param(name, value, **option(**options))


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": WEATHER | fields}]}


def called(function: dict[str, Any] | None = None, result: dict[str, Any] | None = None, **call: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "tool_calls": [{"function": CALL["function"] | (function or {}), **call}]}
    return {"messages": [USER, answer, {"role": "tool", "content": "sunny", **(result or {})}]}


ANSWERS: dict[str, Case] = {
    "ModelBody.model": refused("model", model=5),
    "ModelBody.keep_alive": refused("keep_alive", keep_alive="soon"),
    "ModelBody.options": setting("top_k", 7, top_k=7),
    "AnswerBody.stream": effect(has_text('"done":false'), stream=True),
    "AnswerBody.format": effect(is_constrained, format=SCHEMA, **option(num_predict=30)),
    "AnswerBody.think": effect(prompt_differs, think=False),
    "AnswerBody.logprobs": effect(has_text('"logprobs":[{"token":"o"'), logprobs=True),
    "AnswerBody.top_logprobs": param("num_logprobs", 2, logprobs=True, top_logprobs=2),
    "AnswerBody.truncate": refused("truncate", truncate=True),
    "AnswerBody.shift": refused("shift", shift=True),
    "AnswerBody.priority": effect(has_priority, priority=-3),
    "AnswerBody.deadline_ms": effect(has_deadline, deadline_ms=50_000.0),
}

CHATS: dict[str, Case] = {
    "ChatRequest.messages": effect(prompt_differs, messages=[USER, {"role": "assistant", "content": "Yes."}, USER]),
    "ChatRequest.tools": effect(prompt_differs, **tool()),
    "MessageBody.role": effect(
        prompt_differs, {"messages": [USER, USER]}, messages=[{"role": "system", "content": USER["content"]}, USER]
    ),
    "MessageBody.content": effect(prompt_differs, messages=[{"role": "user", "content": "say more"}]),
    "MessageBody.thinking": refused("messages[0].thinking", messages=[{**USER, "thinking": "Hm."}]),
    "MessageBody.images": refused("messages[0].images", messages=[{**USER, "images": ["aGk="]}]),
    "MessageBody.tool_calls": effect(prompt_differs, **called()),
    "MessageBody.tool_name": harmless(called(), **called(result={"tool_name": "weather"})),
    "MessageBody.tool_call_id": harmless(called(id="a"), **called(id="a", result={"tool_call_id": "a"})),
    "ToolCallBody.function": effect(prompt_differs, called(), **called({"name": "time"})),
    "ToolCallBody.id": harmless(called(), **called(id="call_1")),
    "ToolCallBody.type": refused("messages[1].tool_calls[0].type", **called(type="custom")),
    "FunctionCallBody.name": effect(prompt_differs, called(), **called({"name": "time"})),
    "FunctionCallBody.arguments": effect(prompt_differs, called(), **called({"arguments": {}})),
    "FunctionCallBody.index": harmless(called(), **called({"index": 0})),
    "FunctionCallBody.description": harmless(called(), **called({"description": "a"})),
    "ToolBody.function": effect(prompt_differs, **tool()),
    "ToolBody.type": refused("tools[0].type", tools=[{"type": "web_search", "function": WEATHER}]),
    "FunctionBody.name": effect(prompt_differs, tool(), **tool(name="time")),
    "FunctionBody.description": effect(prompt_differs, tool(), **tool(description="Guesses.")),
    "FunctionBody.parameters": effect(prompt_differs, tool(), **tool(parameters={"type": "object"})),
    "FunctionBody.strict": effect(is_constrained, tool(), **tool(strict=True)),
}

PROMPTS: dict[str, Case] = {
    "GenerateRequest.prompt": effect(prompt_differs, prompt="say more"),
    "GenerateRequest.system": effect(prompt_differs, system="Be brief."),
    "GenerateRequest.raw": effect(prompt_differs, raw=True),
    "GenerateRequest.suffix": refused("suffix", suffix="a"),
    "GenerateRequest.template": refused("template", template="a"),
    "GenerateRequest.context": refused("context", context=[1]),
    "GenerateRequest.images": refused("images", images=["aGk="]),
    "GenerateRequest.width": refused("width", width=1),
    "GenerateRequest.height": refused("height", height=1),
    "GenerateRequest.steps": refused("steps", steps=1),
}

OPTIONS: dict[str, Case] = {
    "num_predict": setting("max_tokens", 2, num_predict=2),
    "temperature": setting("temperature", 0.25, temperature=0.25),
    "top_k": setting("top_k", 7, top_k=7),
    "top_p": setting("top_p", 0.5, top_p=0.5),
    "min_p": setting("min_p", 0.125, min_p=0.125),
    "seed": setting("seed", 7, seed=7),
    "stop": setting("stop", (" th",), stop=[" th"]),
    "repeat_penalty": setting("repetition_penalty", 1.25, repeat_penalty=1.25),
    "repeat_last_n": refused("options.repeat_last_n", **option(repeat_last_n=64, repeat_penalty=1.25)),
    "presence_penalty": setting("presence_penalty", 1.5, presence_penalty=1.5),
    "frequency_penalty": setting("frequency_penalty", 1.5, frequency_penalty=1.5),
    "penalize_newline": refused("options.penalize_newline", **option(penalize_newline=False)),
    "num_ctx": refused("options.num_ctx", **option(num_ctx=100_000)),
    "typical_p": refused("options.typical_p", **option(typical_p=0.5)),
    "tfs_z": refused("options.tfs_z", **option(tfs_z=0.5)),
    "mirostat": refused("options.mirostat", **option(mirostat=1)),
    "logits_all": refused("options.logits_all", **option(logits_all=True)),
    "vocab_only": refused("options.vocab_only", **option(vocab_only=True)),
    "embedding_only": refused("options.embedding_only", **option(embedding_only=True)),
    **{
        name: harmless(**option(**{name: value}))
        for name, value in {
            "num_keep": 5,
            "mirostat_tau": 5.0,
            "mirostat_eta": 0.1,
            "num_batch": 512,
            "num_gpu": 1,
            "main_gpu": 0,
            "num_thread": 4,
            "numa": False,
            "low_vram": False,
            "f16_kv": True,
            "use_mmap": True,
            "use_mlock": False,
        }.items()
    },
}

VECTORS: dict[str, tuple[str, Case]] = {
    "EmbedRequest.input": ("/api/embed", effect(has_text("],["), input=["one", "two"])),
    "EmbedRequest.truncate": ("/api/embed", refused("truncate", truncate=True)),
    "EmbedRequest.dimensions": ("/api/embed", refused("dimensions", dimensions=4)),
    "EmbeddingsRequest.prompt": ("/api/embeddings", refused("prompt", prompt="")),
}

SHOWN: dict[str, Case] = {
    "ShowRequest.model": refused("there is no model", model="other"),
    "ShowRequest.name": effect(
        lambda with_it, without: with_it.text == without.text, {"model": "scripted"}, name="scripted"
    ),
    "ShowRequest.verbose": effect(has_text("bos_token_id"), verbose=True),
}

OPTION_CASES = {f"OptionsBody.{name}": case for name, case in OPTIONS.items()}
CHAT_CASES = {**ANSWERS, **CHATS, **OPTION_CASES}
GENERATE_CASES = {**ANSWERS, **PROMPTS, **OPTION_CASES}


@pytest.mark.parametrize("case", CHAT_CASES.values(), ids=CHAT_CASES)
def test_chat_field(client: httpx.Client, scripted: ScriptedModel, case: Case) -> None:
    check_case(client, scripted, "/api/chat", CHAT, case)


@pytest.mark.parametrize("case", GENERATE_CASES.values(), ids=GENERATE_CASES)
def test_generate_field(client: httpx.Client, scripted: ScriptedModel, case: Case) -> None:
    check_case(client, scripted, "/api/generate", GENERATE, case)


@pytest.mark.parametrize(("path", "case"), VECTORS.values(), ids=VECTORS)
def test_embed_field(client: httpx.Client, scripted: ScriptedModel, path: str, case: Case) -> None:
    default = EMBED if path == "/api/embed" else {"model": "embedding"}
    check_case(client, scripted, path, default, case)


@pytest.mark.parametrize("case", SHOWN.values(), ids=SHOWN)
def test_show_field(client: httpx.Client, scripted: ScriptedModel, case: Case) -> None:
    if case.refused is not None:
        response = client.post("/api/show", json=case.given)
        assert response.status_code == 404
        assert case.refused in response.json()["error"]
        return
    default = {} if "name" in case.given else {"model": "scripted"}
    check_case(client, scripted, "/api/show", default, case)


def test_no_field_is_forgotten() -> None:
    assert own_fields(ollama_types) == {*ANSWERS, *CHATS, *PROMPTS, *OPTION_CASES, *VECTORS, *SHOWN}


def test_the_list_of_harmless_options_is_the_one_that_is_documented() -> None:
    found = {name for name, case in OPTIONS.items() if case.check is None and case.refused is None}
    assert found == set(HARMLESS_OPTIONS)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"])
def test_an_unknown_field_is_refused_by_name(client: httpx.Client, path: str) -> None:
    body = {"model": "scripted", "messages": [USER], "prompt": "a", "input": "a", "zeal": 1}
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert any(f"'{name}'" in response.json()["error"] for name in ("zeal", "messages", "prompt", "input"))
