"""Every field of every body of the responses API has an effect, is refused by name, or is known harmless."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from subsecond.serve import responses_types
from subsecond.serve.responses_order import HARMLESS
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

SAY = "say one two three"
DEFAULT = {"model": "scripted", "input": SAY, "seed": 1, "temperature": 0}
PLAIN: dict[str, Any] = {"reasoning": {"effort": "none"}, "max_output_tokens": 60}
USER = {"role": "user", "content": SAY}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Bern"]}}},
}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Bern"}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
MAIL = {"type": "namespace", "name": "mail", "description": "Post.", "tools": [WEATHER]}
REASONING = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]}


def said(*parts: dict[str, Any], role: str = "user", **fields: Any) -> dict[str, Any]:
    """A body whose first message has these parts."""
    return {"input": [{"role": role, "content": list(parts), **fields}, USER]}


def text(value: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": "input_text", "text": value, **fields}


def output(value: str = "a", **fields: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": value, **fields}


def called(call: dict[str, Any] | None = None, result: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"input": [USER, CALL | (call or {}), RESULT | (result or {})]}


def reasoned(**fields: Any) -> dict[str, Any]:
    return {"input": [USER, REASONING | fields, CALL, RESULT]}


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [WEATHER | fields]}


def member(**fields: Any) -> dict[str, Any]:
    return {"tools": [MAIL | fields]}


def chosen(*tools: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"tools": list(tools) or [WEATHER], "tool_choice": choice, **PLAIN}


def formed(**fields: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA} | fields}, **PLAIN}


def echoes(**fields: Any) -> Case:
    """The response repeats what it was given, and the engine is asked for the same."""
    return effect(
        lambda with_it, without: with_it.asked == without.asked and fields.items() <= with_it.json.items(), **fields
    )


def calls_weather(with_it: Outcome, without: Outcome) -> bool:
    names = [[item.get("name") for item in each.json["output"]] for each in (with_it, without)]
    return "weather" in names[0] and "weather" not in names[1]


def calls_once(with_it: Outcome, _: Outcome) -> bool:
    kinds: list[str] = [item["type"] for item in with_it.json["output"]]
    return kinds == ["function_call"]


REQUEST: dict[str, Case] = {
    "model": refused("model", model=5),
    "input": effect(prompt_differs, input="say other words"),
    "instructions": effect(prompt_differs, instructions="Be brief."),
    "previous_response_id": refused("previous_response_id", previous_response_id=5),
    "store": effect(has_text('"store":false'), store=False),
    "stream": effect(has_text("event: response.completed"), stream=True),
    "stream_options": refused("stream_options", stream_options={"include_obfuscation": True}),
    "tools": effect(prompt_differs, tools=[WEATHER]),
    "tool_choice": effect(calls_weather, {"tools": [WEATHER]}, tools=[WEATHER], tool_choice="required", **PLAIN),
    "parallel_tool_calls": effect(
        calls_once,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        **PLAIN,
    ),
    "text": effect(is_constrained, text={"format": {"type": "json_object"}}, max_output_tokens=20),
    "reasoning": effect(prompt_differs, reasoning={"effort": "none"}),
    "temperature": param("temperature", 0.25, temperature=0.25),
    "top_p": param("top_p", 0.5, top_p=0.5),
    "max_output_tokens": param("max_tokens", 2, max_output_tokens=2),
    "top_logprobs": param("num_logprobs", 2, top_logprobs=2),
    "include": effect(has_text('"top_logprobs":[]'), include=["message.output_text.logprobs"]),
    "metadata": echoes(metadata={"a": "b"}),
    "truncation": refused("truncation", truncation="auto"),
    "background": refused("background", background=True),
    "conversation": refused("conversation", conversation="conv_1"),
    "prompt": refused("prompt", prompt={"id": "pmpt_1"}),
    "context_management": refused("context_management", context_management=[{"type": "compaction"}]),
    "moderation": refused("moderation", moderation={"model": "a"}),
    "max_tool_calls": echoes(max_tool_calls=3),
    "prompt_cache_key": echoes(prompt_cache_key="a"),
    "prompt_cache_options": harmless(prompt_cache_options={"mode": "implicit"}),
    "prompt_cache_retention": harmless(prompt_cache_retention="24h"),
    "safety_identifier": echoes(safety_identifier="a"),
    "service_tier": refused("service_tier", service_tier="flex"),
    "user": echoes(user="someone"),
    "client_metadata": harmless(client_metadata={"a": "b"}),
    "seed": param("seed", 7, seed=7),
    "top_k": param("top_k", 7, top_k=7),
    "min_p": param("min_p", 0.125, min_p=0.125),
    "stop": effect(
        lambda with_it, without: "three" not in with_it.text and "three" in without.text, stop=" th", input=SAY
    ),
    "repetition_penalty": param("repetition_penalty", 1.25, repetition_penalty=1.25),
    "priority": effect(has_priority, priority=-3),
    "deadline_ms": effect(has_deadline, deadline_ms=50_000.0),
}

IMAGE = {"type": "input_image", "image_url": "http://a/b.png", "detail": "auto"}
FILE = {"type": "input_file", "file_id": "a"}
PICTURE_AT = "input[0].content[0].type"

PARTS: dict[str, Case] = {
    "StreamOptions.include_obfuscation": refused(
        "stream_options.include_obfuscation", stream=True, stream_options={"include_obfuscation": True}
    ),
    "InputText.text": effect(prompt_differs, said(text("a")), **said(text("b"))),
    "InputText.prompt_cache_breakpoint": harmless(
        said(text()), **said(text(prompt_cache_breakpoint={"mode": "explicit"}))
    ),
    "OutputText.text": effect(
        prompt_differs, said(output("a"), role="assistant"), **said(output("b"), role="assistant")
    ),
    "OutputText.annotations": harmless(
        said(output(), role="assistant"), **said(output(annotations=[{"type": "x"}]), role="assistant")
    ),
    "OutputText.logprobs": harmless(
        said(output(), role="assistant"), **said(output(logprobs=[{"token": "a"}]), role="assistant")
    ),
    "Refusal.refusal": effect(
        prompt_differs,
        said({"type": "refusal", "refusal": "No."}, role="assistant"),
        **said({"type": "refusal", "refusal": "Never."}, role="assistant"),
    ),
    **{
        f"InputImage.{name}": refused(PICTURE_AT, **said(IMAGE | {name: value}))
        for name, value in {
            "image_url": "a",
            "file_id": "a",
            "detail": "low",
            "prompt_cache_breakpoint": {"mode": "explicit"},
        }.items()
    },
    **{
        f"InputFile.{name}": refused(PICTURE_AT, **said(FILE | {name: value}))
        for name, value in {
            "file_id": "a",
            "file_data": "a",
            "file_url": "a",
            "filename": "a",
            "detail": "low",
            "prompt_cache_breakpoint": {"mode": "explicit"},
        }.items()
    },
    "InputAudio.input_audio": refused(PICTURE_AT, **said({"type": "input_audio", "input_audio": {"data": "a"}})),
    "MessageItem.role": effect(prompt_differs, said(text(), role="user"), **said(text(), role="developer")),
    "MessageItem.content": effect(prompt_differs, {"input": [USER]}, **said(text())),
    "MessageItem.type": refused("input[0].type", **said(text(), type="letter")),
    "MessageItem.id": harmless(said(text()), **said(text(), id="msg_1")),
    "MessageItem.status": harmless(said(text()), **said(text(), status="completed")),
    "MessageItem.phase": harmless(
        said(output(), role="assistant"), **said(output(), role="assistant", phase="commentary")
    ),
    "FunctionCallItem.call_id": refused("input[1].call_id", **called({"call_id": 5})),
    "FunctionCallItem.name": effect(prompt_differs, called(), **called({"name": "time"})),
    "FunctionCallItem.arguments": effect(prompt_differs, called(), **called({"arguments": "{}"})),
    "FunctionCallItem.type": effect(prompt_differs, {"input": [USER]}, **called()),
    "FunctionCallItem.id": harmless(called(), **called({"id": "fc_1"})),
    "FunctionCallItem.status": harmless(called(), **called({"status": "completed"})),
    "FunctionCallItem.namespace": effect(prompt_differs, called(), **called({"namespace": "mail"})),
    "FunctionCallItem.caller": refused("input[1].caller", **called({"caller": {"type": "program", "caller_id": "a"}})),
    "FunctionCallOutputItem.call_id": refused("input[2].call_id", **called(result={"call_id": 5})),
    "FunctionCallOutputItem.output": effect(prompt_differs, called(), **called(result={"output": [text("rainy")]})),
    "FunctionCallOutputItem.type": effect(prompt_differs, {"input": [USER, CALL, USER]}, **called()),
    "FunctionCallOutputItem.id": harmless(called(), **called(result={"id": "fco_1"})),
    "FunctionCallOutputItem.status": harmless(called(), **called(result={"status": "completed"})),
    "FunctionCallOutputItem.name": harmless(called(), **called(result={"name": "weather"})),
    "FunctionCallOutputItem.namespace": harmless(called(), **called(result={"namespace": "mail"})),
    "FunctionCallOutputItem.caller": refused("input[2].caller", **called(result={"caller": {"type": "program"}})),
    "SummaryText.text": harmless(reasoned(), **reasoned(summary=[{"type": "summary_text", "text": "Short."}])),
    "ReasoningText.text": refused(
        "input[1].content[0].text", **reasoned(content=[{"type": "reasoning_text", "text": 5}])
    ),
    "ReasoningItem.type": refused("input[1].type", **reasoned(type="thought")),
    "ReasoningItem.id": harmless(reasoned(), **reasoned(id="rs_1")),
    "ReasoningItem.summary": harmless(reasoned(), **reasoned(summary=[])),
    "ReasoningItem.content": refused("input[1].content", **reasoned(content=5)),
    "ReasoningItem.encrypted_content": harmless(reasoned(), **reasoned(encrypted_content="abc")),
    "ReasoningItem.status": harmless(reasoned(), **reasoned(status="completed")),
}

ALLOWED = {"type": "allowed_tools", "tools": [{"type": "function", "name": "weather"}]}
TIME = WEATHER | {"name": "time"}

SETTINGS: dict[str, Case] = {
    "FunctionTool.name": effect(prompt_differs, tool(), **tool(name="time")),
    "FunctionTool.type": refused("tools[0].type", **tool(type="custom")),
    "FunctionTool.description": effect(prompt_differs, tool(), **tool(description="Guesses.")),
    "FunctionTool.parameters": effect(prompt_differs, tool(), **tool(parameters={"type": "object"})),
    "FunctionTool.strict": effect(is_constrained, tool(), **tool(strict=True)),
    "FunctionTool.defer_loading": refused("tools[0].defer_loading", **tool(defer_loading=True)),
    "FunctionTool.allowed_callers": refused("tools[0].allowed_callers", **tool(allowed_callers=["programmatic"])),
    "FunctionTool.output_schema": harmless(tool(), **tool(output_schema={"type": "string"})),
    "NamespaceTool.name": effect(prompt_differs, member(), **member(name="post")),
    "NamespaceTool.tools": effect(prompt_differs, member(), **member(tools=[TIME])),
    "NamespaceTool.description": effect(prompt_differs, member(), **member(description="Letters.")),
    "NamespaceTool.type": effect(prompt_differs, {"tools": [WEATHER]}, **member()),
    "ToolChoiceBody.type": refused("tool_choice.type", **chosen(type="web_search")),
    "ToolChoiceBody.name": effect(
        calls_weather, {"tools": [WEATHER, TIME]}, **chosen(WEATHER, TIME, type="function", name="weather")
    ),
    "ToolChoiceBody.namespace": effect(
        calls_weather, {"tools": [MAIL]}, **chosen(MAIL, type="function", name="weather", namespace="mail")
    ),
    "ToolChoiceBody.mode": effect(
        calls_weather, chosen(WEATHER, TIME, **ALLOWED), **chosen(WEATHER, TIME, **ALLOWED, mode="required")
    ),
    "ToolChoiceBody.tools": effect(prompt_differs, {"tools": [WEATHER, TIME]}, **chosen(WEATHER, TIME, **ALLOWED)),
    "ToolChoiceBody.server_label": refused("tool_choice.type", **chosen(type="mcp", server_label="a")),
    "TextFormat.type": effect(is_constrained, **formed()),
    "TextFormat.name": harmless(formed(), **formed(name="y")),
    "TextFormat.schema": refused("text.format.schema", **formed(schema=None)),
    "TextFormat.strict": refused("schema", **formed(schema={"type": "string", "format": "no-such"}, strict=True)),
    "TextFormat.description": harmless(formed(), **formed(description="a")),
    "TextConfig.format": effect(has_text('"text":"{'), PLAIN, **formed()),
    "TextConfig.verbosity": refused("text.verbosity", text={"verbosity": "low"}),
    "ReasoningConfig.effort": effect(prompt_differs, reasoning={"effort": "none"}),
    "ReasoningConfig.summary": harmless(reasoning={"summary": "auto"}),
    "ReasoningConfig.generate_summary": harmless(reasoning={"generate_summary": "auto"}),
    "ReasoningConfig.context": refused("reasoning.context", reasoning={"context": "all_turns"}),
    "ReasoningConfig.mode": refused("reasoning.mode", reasoning={"mode": "pro"}),
}

CASES = {**{f"ResponsesRequest.{name}": case for name, case in REQUEST.items()}, **PARTS, **SETTINGS}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_field(client: httpx.Client, scripted: ScriptedModel, case: Case) -> None:
    check_case(client, scripted, "/v1/responses", DEFAULT, case)


def test_no_field_is_forgotten() -> None:
    assert own_fields(responses_types) == set(CASES)


def test_the_list_of_harmless_fields_is_the_one_that_is_documented() -> None:
    unlike = {name for name in HARMLESS if REQUEST[name].refused is not None}
    found = {name for name, case in REQUEST.items() if case.check is None and case.refused is None}
    assert not unlike
    assert found <= set(HARMLESS)


def test_an_unknown_field_is_refused_by_name(client: httpx.Client) -> None:
    response = client.post("/v1/responses", json={**DEFAULT, "zeal": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "zeal"
