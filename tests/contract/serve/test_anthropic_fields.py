"""Every field of every body of the messages API has an effect, is refused by name, or is known harmless."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from subsecond.serve import anthropic_types
from subsecond.serve.anthropic_order import HARMLESS
from tests.contract.serve.scripted_model import ScriptedModel
from tests.contract.serve.wire_cases import (
    Case,
    Outcome,
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
DEFAULT = {"model": "scripted", "messages": [USER], "max_tokens": 60, "seed": 1, "temperature": 0}
PLAIN: dict[str, Any] = {"thinking": {"type": "disabled"}}
CACHED: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Bern"]}}},
}
TIME = WEATHER | {"name": "time"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://a/b.png"}}


def text(value: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


def said(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    """A body whose first message has these blocks."""
    messages: list[dict[str, Any]] = [{"role": role, "content": list(blocks)}]
    return {
        "messages": messages + ([USER] if role == "assistant" else [{"role": "assistant", "content": "Yes."}, USER])
    }


def called(use: dict[str, Any] | None = None, result: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = {"role": "assistant", "content": [USE | (use or {})]}
    return {"messages": [USER, answer, {"role": "user", "content": [RESULT | (result or {})]}]}


def thought(**fields: Any) -> dict[str, Any]:
    return said({"type": "thinking", "thinking": "Hm.", "signature": "a"} | fields, text(), role="assistant")


def redacted(**fields: Any) -> dict[str, Any]:
    return said({"type": "redacted_thinking", "data": "abc"} | fields, text(), role="assistant")


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [WEATHER | fields]}


def chosen(*tools: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"tools": list(tools) or [WEATHER], "tool_choice": choice, **PLAIN}


def calls_weather(with_it: Outcome, without: Outcome) -> bool:
    return with_it.json["stop_reason"] == "tool_use" and "tool_use" not in without.text


def calls_once(with_it: Outcome, _: Outcome) -> bool:
    return [block["type"] for block in with_it.json["content"]] == ["tool_use"]


def formed(**fields: Any) -> dict[str, Any]:
    return {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA} | fields}, **PLAIN}


MESSAGES: dict[str, Case] = {
    "PromptBody.model": refused("model", model=5),
    "PromptBody.messages": effect(prompt_differs, messages=[USER, {"role": "assistant", "content": "Yes."}, USER]),
    "PromptBody.system": effect(prompt_differs, system="Be brief."),
    "PromptBody.tools": effect(prompt_differs, tools=[WEATHER]),
    "PromptBody.tool_choice": effect(calls_weather, {"tools": [WEATHER]}, **chosen(type="any")),
    "PromptBody.thinking": effect(prompt_differs, thinking={"type": "disabled"}),
    "PromptBody.output_config": effect(is_constrained, **formed()),
    "PromptBody.cache_control": harmless(**CACHED),
    "PromptBody.context_management": refused(
        "context_management", context_management={"edits": [{"type": "clear_tool_uses_20250919"}]}
    ),
    "PromptBody.mcp_servers": refused("mcp_servers", mcp_servers=[{"type": "url", "url": "http://a"}]),
    "PromptBody.speed": refused("speed", speed="fast"),
    "PromptBody.user_profile_id": harmless(user_profile_id="a"),
    "MessagesRequest.max_tokens": param("max_tokens", 2, max_tokens=2),
    "MessagesRequest.stream": effect(has_text("event: message_stop"), stream=True),
    "MessagesRequest.stop_sequences": param("stop", (" th",), stop_sequences=[" th"]),
    "MessagesRequest.temperature": param("temperature", 0.25, temperature=0.25),
    "MessagesRequest.top_p": param("top_p", 0.5, top_p=0.5),
    "MessagesRequest.top_k": param("top_k", 7, top_k=7),
    "MessagesRequest.metadata": harmless(metadata={"user_id": "a"}),
    "MessagesRequest.service_tier": refused("service_tier", service_tier="flex"),
    "MessagesRequest.container": refused("container", container="a"),
    "MessagesRequest.inference_geo": refused("inference_geo", inference_geo="eu"),
    "MessagesRequest.diagnostics": refused("diagnostics", diagnostics={"previous_message_id": "a"}),
    "MessagesRequest.seed": param("seed", 7, seed=7),
    "MessagesRequest.min_p": param("min_p", 0.125, min_p=0.125),
    "MessagesRequest.priority": effect(has_priority, priority=-3),
    "MessagesRequest.deadline_ms": effect(has_deadline, deadline_ms=50_000.0),
}

BLOCKS: dict[str, Case] = {
    "MessageBody.role": effect(
        prompt_differs, {"messages": [USER, USER]}, messages=[{"role": "system", "content": "say one two three"}, USER]
    ),
    "MessageBody.content": effect(prompt_differs, messages=[{"role": "user", "content": "say more"}]),
    "TextBlock.text": effect(prompt_differs, said(text("a")), **said(text("b"))),
    "TextBlock.cache_control": harmless(said(text()), **said(text(**CACHED))),
    "TextBlock.citations": harmless(said(text()), **said(text(citations=[{"type": "a"}]))),
    "ThinkingBlock.thinking": refused("thinking", **thought(thinking=5)),
    "ThinkingBlock.signature": harmless(thought(), **thought(signature="b")),
    "ThinkingBlock.cache_control": harmless(thought(), **thought(**CACHED)),
    "RedactedThinkingBlock.data": effect(
        lambda with_it, without: with_it.asked == without.asked and "redacted_thinking" in with_it.text,
        said(text(), role="assistant"),
        **redacted(),
    ),
    "RedactedThinkingBlock.cache_control": harmless(redacted(), **redacted(**CACHED)),
    "ToolUseBlock.id": refused("id", **called({"id": 5})),
    "ToolUseBlock.name": effect(prompt_differs, called(), **called({"name": "time"})),
    "ToolUseBlock.input": effect(prompt_differs, called(), **called({"input": {}})),
    "ToolUseBlock.cache_control": harmless(called(), **called(CACHED)),
    "ToolUseBlock.caller": refused("messages[1].content[0].caller", **called({"caller": {"type": "code_execution"}})),
    "ToolUseBlock.toolset_name": refused("messages[1].content[0].toolset_name", **called({"toolset_name": "a"})),
    "ToolResultBlock.tool_use_id": refused("tool_use_id", **called(result={"tool_use_id": 5})),
    "ToolResultBlock.content": effect(prompt_differs, called(), **called(result={"content": [text("rainy")]})),
    "ToolResultBlock.is_error": effect(prompt_differs, called(), **called(result={"is_error": True})),
    "ToolResultBlock.cache_control": harmless(called(), **called(result=CACHED)),
    "ToolResultBlock.toolset_name": refused("toolset_name", **called(result={"toolset_name": "a"})),
}

SETTINGS: dict[str, Case] = {
    "ToolBody.name": effect(prompt_differs, tool(), **tool(name="time")),
    "ToolBody.input_schema": effect(prompt_differs, tool(), **tool(input_schema={"type": "object"})),
    "ToolBody.type": refused("tools[0].type", **tool(type="web_search_20250305")),
    "ToolBody.description": effect(prompt_differs, tool(), **tool(description="Guesses.")),
    "ToolBody.strict": effect(is_constrained, tool(), **tool(strict=True)),
    "ToolBody.cache_control": harmless(tool(), **tool(**CACHED)),
    "ToolBody.eager_input_streaming": harmless(tool(), **tool(eager_input_streaming=True)),
    "ToolBody.defer_loading": refused("tools[0].defer_loading", **tool(defer_loading=True)),
    "ToolBody.allowed_callers": refused("tools[0].allowed_callers", **tool(allowed_callers=["code_execution"])),
    "ToolBody.input_examples": refused("tools[0].input_examples", **tool(input_examples=[{"city": "Bern"}])),
    "ToolChoiceBody.type": effect(calls_weather, chosen(type="none"), **chosen(type="any")),
    "ToolChoiceBody.name": refused("tool_choice.name", **chosen(type="tool", name="mail")),
    "ToolChoiceBody.disable_parallel_tool_use": effect(
        calls_once, chosen(type="any"), **chosen(type="any", disable_parallel_tool_use=True)
    ),
    "ThinkingBody.type": effect(prompt_differs, {"thinking": {"type": "adaptive"}}, thinking={"type": "disabled"}),
    "ThinkingBody.budget_tokens": refused(
        "thinking.budget_tokens", thinking={"type": "enabled", "budget_tokens": 60}, max_tokens=60
    ),
    "ThinkingBody.display": effect(
        lambda with_it, without: "Hm." in without.text and "Hm." not in with_it.text and "one" in with_it.text,
        {"messages": [{"role": "user", "content": "say <think>Hm.</think>one"}]},
        messages=[{"role": "user", "content": "say <think>Hm.</think>one"}],
        thinking={"type": "adaptive", "display": "omitted"},
    ),
    "OutputFormatBody.type": refused("output_config.format.type", **formed(type="regex")),
    "OutputFormatBody.schema": effect(has_text('"text":"{'), **formed()),
    "OutputConfig.effort": refused("output_config.effort", output_config={"effort": "utmost"}),
    "OutputConfig.format": effect(is_constrained, **formed()),
}

CASES = {**MESSAGES, **BLOCKS, **SETTINGS}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_field(client: httpx.Client, scripted: ScriptedModel, case: Case) -> None:
    check_case(client, scripted, "/v1/messages", DEFAULT, case)


def test_no_field_is_forgotten() -> None:
    assert own_fields(anthropic_types) == set(CASES)


def test_the_list_of_harmless_fields_is_the_one_that_is_documented() -> None:
    found = {name.partition(".")[2] for name, case in MESSAGES.items() if case.check is None and case.refused is None}
    assert found == set(HARMLESS)


@pytest.mark.parametrize(
    ("kind", "said_of_it"),
    [("image", "pictures are"), ("document", "documents are"), ("search_result", "search results are")],
)
def test_what_is_not_read_is_refused_by_name(client: httpx.Client, kind: str, said_of_it: str) -> None:
    block = {"type": kind, "source": {"type": "url", "url": "http://a"}, "title": "a"}
    for body, place in (
        (said(block), "messages[0].content[0].type"),
        (called(result={"content": [block]}), "messages[2].content[0].content[0].type"),
    ):
        response = client.post("/v1/messages", json={**DEFAULT, **body})
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(f"{place}: {said_of_it} not read here")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_an_unknown_field_is_refused_by_name(client: httpx.Client, path: str) -> None:
    response = client.post(path, json={"model": "scripted", "messages": [USER], "zeal": 1})
    assert response.status_code == 400
    assert "'zeal'" in response.json()["error"]["message"]
