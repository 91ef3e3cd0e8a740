"""Every field of every body of the chat and completions API has an effect, is refused by name, or is known harmless."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest

from subsecond.engine.request import Request
from subsecond.serve import openai_types as wire
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedModel

SAY = [{"role": "user", "content": "say one two three"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Bern"]}}, "additionalProperties": False},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
CALLED: list[dict[str, Any]] = [
    *SAY,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@dataclass(frozen=True)
class Outcome:
    """What came of a body: the answer's status and text, and the requests that the engine was given."""

    status: int
    text: str
    requests: tuple[Request, ...]

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.text)

    @property
    def params(self) -> Any:
        return self.requests[0].params

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.requests[0].prompt_ids


@dataclass(frozen=True)
class Case:
    """A body with the field and one without it, and what the difference has to be.

    effect   given the outcomes with and without; None where there must be no difference
    refused  the place that a 400 has to name
    """

    given: Mapping[str, Any]
    plain: Mapping[str, Any] | None = None
    effect: Callable[[Outcome, Outcome], bool] | None = None
    refused: str | None = None


def effect(check: Callable[[Outcome, Outcome], bool], plain: Mapping[str, Any] | None = None, **given: Any) -> Case:
    return Case(given, plain or {}, check)


def refused(place: str, **given: Any) -> Case:
    return Case(given, refused=place)


def harmless(plain: Mapping[str, Any] | None = None, **given: Any) -> Case:
    return Case(given, plain or {})


def param(name: str, value: Any, **given: Any) -> Case:
    """The engine is given the value as a setting of that name, and another one otherwise."""
    return effect(
        lambda with_it, without: getattr(with_it.params, name) == value and getattr(without.params, name) != value,
        **given,
    )


def message(role: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, **fields}, *SAY]}


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "say this"}, fields]}]}


def prompt_differs(with_it: Outcome, without: Outcome) -> bool:
    return with_it.prompt != without.prompt


def is_constrained(with_it: Outcome, without: Outcome) -> bool:
    return with_it.requests[0].constraint is not None and without.requests[0].constraint is None


def answers_json(with_it: Outcome, without: Outcome) -> bool:
    """The answer is JSON where it would not be."""
    text = with_it.json["choices"][0]["message"]["content"]
    return is_constrained(with_it, without) and set(msgspec.json.decode(text)) == {"a"}


def calls_weather(with_it: Outcome, without: Outcome) -> bool:
    called = with_it.json["choices"][0]["message"]["tool_calls"]
    return called[0]["function"]["name"] == "weather" and "tool_calls" not in without.json["choices"][0]["message"]


def schema(**fields: Any) -> dict[str, Any]:
    return {"max_tokens": 30, "response_format": {"type": "json_schema", "json_schema": {"name": "x", **fields}}}


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{**WEATHER, "function": {**WEATHER["function"], **fields}}]}  # type: ignore[dict-item]


def custom_call(**fields: Any) -> dict[str, Any]:
    call = {"id": "call_1", "type": "custom", "custom": {"name": "a", "input": "b"}, **fields}
    return {"messages": [*SAY, {"role": "assistant", "content": None, "tool_calls": [call]}]}


def called(**fields: Any) -> dict[str, Any]:
    """The conversation with a call, changed."""
    function = {**CALL["function"], **fields.pop("function", {})}  # type: ignore[dict-item]
    answer = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": function, **fields}]}
    return {"messages": [*SAY, answer, CALLED[2]]}


def allowed(mode: str = "auto", names: tuple[str, ...] = ("weather",), kind: str = "function") -> dict[str, Any]:
    tools = [{"type": kind, "function": {"name": name}} for name in names]
    return {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}}


def has_text(text: str) -> Callable[[Outcome, Outcome], bool]:
    return lambda with_it, without: text in with_it.text and text not in without.text


OTHER_TOOL = {"type": "function", "function": {"name": "time"}}
TWO_TOOLS = [WEATHER, OTHER_TOOL]
EMPTY_SCHEMA = {"type": "object"}

SHARED: dict[str, Case] = {
    "stream": effect(has_text("data: [DONE]"), stream=True),
    "stream_options": effect(
        has_text('"choices":[],"usage":{'), {"stream": True}, stream=True, stream_options={"include_usage": True}
    ),
    "n": effect(lambda with_it, _: len(with_it.json["choices"]) == len(with_it.requests) == 3, n=3),
    "max_tokens": param("max_tokens", 2, max_tokens=2),
    "temperature": param("temperature", 0.25, temperature=0.25),
    "top_p": param("top_p", 0.5, top_p=0.5),
    "seed": param("seed", 2**64 - 7, seed=-7),
    "stop": effect(lambda with_it, without: "three" not in with_it.text and "three" in without.text, stop=" th"),
    "presence_penalty": param("presence_penalty", 1.5, presence_penalty=1.5),
    "frequency_penalty": param("frequency_penalty", -1.5, frequency_penalty=-1.5),
    "logit_bias": param("logit_bias", {65: -3.0}, logit_bias={"65": -3}),
    "user": harmless(user="someone"),
    "top_k": param("top_k", 7, top_k=7),
    "min_p": param("min_p", 0.125, min_p=0.125),
    "repetition_penalty": param("repetition_penalty", 1.25, repetition_penalty=1.25),
    "ignore_eos": effect(
        lambda *outcomes: [each.json["choices"][0]["finish_reason"] for each in outcomes] == ["length", "stop"],
        {"max_tokens": 15},
        ignore_eos=True,
        max_tokens=15,
    ),
    "stop_token_ids": param("stop_token_ids", (70, 71), stop_token_ids=[70, 71]),
    "structured_outputs": effect(is_constrained, structured_outputs={"regex": "[0-9]{3}"}),
    "priority": effect(lambda with_it, _: with_it.requests[0].priority == -3, priority=-3),
    "deadline_ms": effect(
        lambda with_it, without: (
            with_it.requests[0].deadline_ms is not None and without.requests[0].deadline_ms is None
        ),
        deadline_ms=50_000.0,
    ),
}

CHAT: dict[str, Case] = {
    **{f"ChatBody.{name}": case for name, case in SHARED.items()},
    "ChatBody.model": refused("model", model=5),
    "ChatBody.messages": effect(prompt_differs, messages=[*SAY, *SAY]),
    "ChatBody.max_completion_tokens": param("max_tokens", 3, max_completion_tokens=3),
    "ChatBody.logprobs": effect(has_text('"top_logprobs":[]'), logprobs=True),
    "ChatBody.top_logprobs": param("num_logprobs", 2, logprobs=True, top_logprobs=2),
    "ChatBody.response_format": effect(answers_json, {"max_tokens": 30}, **schema(schema=SCHEMA)),
    "ChatBody.tools": effect(prompt_differs, tools=[WEATHER]),
    "ChatBody.tool_choice": effect(
        calls_weather, {"tools": [WEATHER]}, tools=[WEATHER], tool_choice="required", max_tokens=60
    ),
    "ChatBody.parallel_tool_calls": effect(
        lambda with_it, _: len(with_it.json["choices"][0]["message"]["tool_calls"]) == 1,
        {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 60},
        tools=[WEATHER],
        tool_choice="required",
        max_tokens=60,
        parallel_tool_calls=False,
    ),
    "ChatBody.reasoning_effort": effect(prompt_differs, reasoning_effort="none"),
    "ChatBody.metadata": harmless(metadata={"a": "b"}),
    "ChatBody.store": refused("store", store=True),
    "ChatBody.service_tier": refused("service_tier", service_tier="flex"),
    "ChatBody.prompt_cache_key": harmless(prompt_cache_key="a"),
    "ChatBody.prompt_cache_options": harmless(prompt_cache_options={"mode": "implicit"}),
    "ChatBody.prompt_cache_retention": harmless(prompt_cache_retention="24h"),
    "ChatBody.safety_identifier": harmless(safety_identifier="a"),
    "ChatBody.modalities": refused("modalities", modalities=["text", "audio"]),
    "ChatBody.verbosity": refused("verbosity", verbosity="low"),
    "ChatBody.audio": refused("audio", audio={"voice": "a", "format": "wav"}),
    "ChatBody.function_call": refused("function_call", function_call="auto"),
    "ChatBody.functions": refused("functions", functions=[{"name": "a"}]),
    "ChatBody.moderation": refused("moderation", moderation={"model": "a"}),
    "ChatBody.prediction": refused("prediction", prediction={"type": "content", "content": "a"}),
    "ChatBody.web_search_options": refused("web_search_options", web_search_options={"search_context_size": "low"}),
    "ChatBody.chat_template_kwargs": effect(prompt_differs, chat_template_kwargs={"enable_thinking": False}),
    "ChatBody.add_generation_prompt": refused("add_generation_prompt", add_generation_prompt=False),
    "ChatBody.continue_final_message": effect(
        prompt_differs,
        {"messages": [*SAY, {"role": "assistant", "content": "one"}]},
        messages=[*SAY, {"role": "assistant", "content": "one"}],
        continue_final_message=True,
    ),
    "StreamOptions.include_usage": SHARED["stream_options"],
    "StreamOptions.include_obfuscation": harmless(
        {"stream": True}, stream=True, stream_options={"include_obfuscation": True}
    ),
    "TextPart.text": effect(prompt_differs, part(type="text", text="a"), **part(type="text", text="b")),
    "TextPart.prompt_cache_breakpoint": harmless(
        part(type="text", text="a"), **part(type="text", text="a", prompt_cache_breakpoint={"mode": "explicit"})
    ),
    "RefusalPart.refusal": effect(
        prompt_differs,
        message("assistant", content=[{"type": "refusal", "refusal": "No."}]),
        **message("assistant", content=[{"type": "refusal", "refusal": "Never."}]),
    ),
    "ImagePart.image_url": refused(
        "messages[0].content[1].type", **part(type="image_url", image_url={"url": "http://a/b.png"})
    ),
    "ImagePart.prompt_cache_breakpoint": refused(
        "messages[0].content[1].type", **part(type="image_url", image_url={"url": "a"}, prompt_cache_breakpoint={})
    ),
    "AudioPart.input_audio": refused(
        "messages[0].content[1].type", **part(type="input_audio", input_audio={"data": "aa", "format": "wav"})
    ),
    "AudioPart.prompt_cache_breakpoint": refused(
        "messages[0].content[1].type", **part(type="input_audio", input_audio={}, prompt_cache_breakpoint={})
    ),
    "FilePart.file": refused("messages[0].content[1].type", **part(type="file", file={"file_id": "a"})),
    "FilePart.prompt_cache_breakpoint": refused(
        "messages[0].content[1].type", **part(type="file", file={"file_id": "a"}, prompt_cache_breakpoint={})
    ),
    "SystemMessage.content": effect(prompt_differs, **message("system", content="Be brief.")),
    "SystemMessage.name": harmless(
        message("system", content="Be brief."), **message("system", content="Be brief.", name="a")
    ),
    "DeveloperMessage.content": effect(prompt_differs, **message("developer", content="Be brief.")),
    "DeveloperMessage.name": harmless(
        message("developer", content="Be brief."), **message("developer", content="Be brief.", name="a")
    ),
    "UserMessage.content": effect(prompt_differs, **message("user", content="Hi.")),
    "UserMessage.name": harmless(message("user", content="Hi."), **message("user", content="Hi.", name="a")),
    "AssistantMessage.content": effect(prompt_differs, **message("assistant", content="Hi.")),
    "AssistantMessage.name": harmless(
        message("assistant", content="Hi."), **message("assistant", content="Hi.", name="a")
    ),
    "AssistantMessage.refusal": effect(prompt_differs, **message("assistant", refusal="No.")),
    "AssistantMessage.reasoning_content": refused("", **message("assistant", content="Hi.", reasoning_content=5)),
    "AssistantMessage.tool_calls": effect(prompt_differs, messages=CALLED),
    "AssistantMessage.function_call": refused(
        "messages[0].function_call", **message("assistant", content="a", function_call={"name": "a", "arguments": ""})
    ),
    "AssistantMessage.audio": refused("messages[0].audio", **message("assistant", content="a", audio={"id": "a"})),
    "AssistantMessage.annotations": harmless(
        message("assistant", content="Hi."), **message("assistant", content="Hi.", annotations=[])
    ),
    "ToolMessage.content": effect(
        prompt_differs, {"messages": CALLED}, messages=[*CALLED[:2], {**CALLED[2], "content": "rainy"}]
    ),
    "ToolMessage.tool_call_id": refused(
        "messages[2].tool_call_id", messages=[*CALLED[:2], {"role": "tool", "content": "sunny"}]
    ),
    "ToolMessage.name": harmless({"messages": CALLED}, messages=[*CALLED[:2], {**CALLED[2], "name": "weather"}]),
    "FunctionMessage.content": refused("messages[0].role", **message("function", name="a", content="b")),
    "FunctionMessage.name": refused("messages[0].role", **message("function", name="a", content=None)),
    "MessageToolCall.id": refused("messages[1].tool_calls[0].id", **called(id=5)),
    "MessageToolCall.function": refused("messages[1].tool_calls[0].type", **called(type="function") | custom_call()),
    "MessageToolCall.type": refused("messages[1].tool_calls[0].type", **called(type="other")),
    "MessageToolCall.custom": refused("messages[1].tool_calls[0].type", **custom_call()),
    "MessageToolCall.index": harmless({"messages": CALLED}, **called(index=0)),
    "CalledFunction.name": effect(prompt_differs, {"messages": CALLED}, **called(function={"name": "time"})),
    "CalledFunction.arguments": effect(prompt_differs, {"messages": CALLED}, **called(function={"arguments": "{}"})),
    "CustomInput.name": refused("messages[1].tool_calls[0].type", **custom_call()),
    "CustomInput.input": refused("messages[1].tool_calls[0].type", **custom_call()),
    "ToolDefinition.type": refused("tools[0].type", tools=[{**WEATHER, "type": "web_search"}]),
    "ToolDefinition.function": refused("tools[0].function", tools=[{"type": "function"}]),
    "ToolDefinition.custom": refused("tools[0].type", tools=[{"type": "custom", "custom": {"name": "a"}}]),
    "FunctionDefinition.name": effect(prompt_differs, {"tools": [WEATHER]}, **tool(name="time")),
    "FunctionDefinition.description": effect(prompt_differs, {"tools": [WEATHER]}, **tool(description="Guesses.")),
    "FunctionDefinition.parameters": effect(prompt_differs, {"tools": [WEATHER]}, **tool(parameters=EMPTY_SCHEMA)),
    "FunctionDefinition.strict": effect(is_constrained, {"tools": [WEATHER]}, **tool(strict=True)),
    "FunctionName.name": refused(
        "tool_choice.function.name",
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "time"}},
    ),
    "NamedToolChoice.function": effect(
        calls_weather,
        {"tools": TWO_TOOLS},
        tools=TWO_TOOLS,
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=60,
    ),
    "CustomToolChoice.custom": refused(
        "tool_choice.type", tools=[WEATHER], tool_choice={"type": "custom", "custom": {"name": "weather"}}
    ),
    "AllowedToolName.type": refused(
        "tool_choice.allowed_tools.tools[0].type", tools=[WEATHER], **allowed(kind="custom")
    ),
    "AllowedToolName.function": refused(
        "tool_choice.allowed_tools.tools[0].function.name", tools=[WEATHER], **allowed(names=("time",))
    ),
    "AllowedTools.mode": effect(
        calls_weather, {"tools": TWO_TOOLS, **allowed()}, tools=TWO_TOOLS, **allowed("required"), max_tokens=60
    ),
    "AllowedTools.tools": effect(prompt_differs, {"tools": TWO_TOOLS}, tools=TWO_TOOLS, **allowed()),
    "AllowedToolChoice.allowed_tools": effect(prompt_differs, {"tools": TWO_TOOLS}, tools=TWO_TOOLS, **allowed()),
    "JsonSchemaFormat.json_schema": effect(answers_json, {"max_tokens": 30}, **schema(schema=SCHEMA)),
    "NamedSchema.name": refused("response_format.json_schema.name", **schema(name=5)),
    "NamedSchema.description": harmless(schema(schema=SCHEMA), **schema(schema=SCHEMA, description="a")),
    "NamedSchema.schema": effect(answers_json, {"max_tokens": 30}, **schema(schema=SCHEMA)),
    "NamedSchema.strict": refused("", **schema(schema={"type": "string", "format": "no-such"}, strict=True)),
    "StructuredOutputs.json": effect(
        answers_json, {"max_tokens": 30}, max_tokens=30, structured_outputs={"json": SCHEMA}
    ),
    "StructuredOutputs.regex": effect(has_text('"content":"777"'), structured_outputs={"regex": "777"}),
    "StructuredOutputs.choice": effect(has_text('"content":"(a+b) [c]"'), structured_outputs={"choice": ["(a+b) [c]"]}),
    "StructuredOutputs.grammar": effect(
        has_text('"content":"yes!"'), structured_outputs={"grammar": 'start: "yes" "!"'}
    ),
    "StructuredOutputs.json_object": effect(is_constrained, structured_outputs={"json_object": True}),
}

COMPLETIONS: dict[str, Case] = {
    **{f"CompletionBody.{name}": case for name, case in SHARED.items()},
    "CompletionBody.model": refused("model", model=5),
    "CompletionBody.prompt": effect(prompt_differs, prompt=[65, 66]),
    "CompletionBody.echo": effect(has_text('"text":"say one two three'), echo=True),
    "CompletionBody.logprobs": param("num_logprobs", 2, logprobs=2),
    "CompletionBody.suffix": refused("suffix", suffix="a"),
    "CompletionBody.best_of": refused("best_of", best_of=2),
}


@pytest.fixture
def post(server: LiveServer, client: httpx.Client, scripted: ScriptedModel) -> Callable[..., Outcome]:
    def send(path: str, body: Mapping[str, Any]) -> Outcome:
        before = len(scripted.engine.requests)
        response = client.post(path, json=body)
        return Outcome(response.status_code, response.text, tuple(scripted.engine.requests[before:]))

    return send


def check(post: Callable[..., Outcome], path: str, default: Mapping[str, Any], case: Case) -> None:
    if path.startswith("/v1/chat") and not {"reasoning_effort", "chat_template_kwargs"} & set(case.given):
        default = {**default, "reasoning_effort": "none"}  # what an answer is held to does not hold for its reasoning
    given = post(path, {**default, **case.given})
    if case.refused is not None:
        assert given.status == 400, given.text
        assert not given.requests
        assert given.json["error"]["type"] == "invalid_request_error"
        assert given.json["error"]["param"] == case.refused or not case.refused, given.text
        return
    assert given.status == 200, given.text
    plain = post(path, {**default, **(case.plain or {})})
    assert plain.status == 200, plain.text
    if case.effect is not None:
        assert case.effect(given, plain), (given.text, plain.text)
    else:
        same = [
            (each.prompt_ids, each.params, each.priority, each.deadline_ms, each.constraint is None)
            for outcome in (given, plain)
            for each in outcome.requests
        ]
        assert same[: len(same) // 2] == same[len(same) // 2 :]


@pytest.mark.parametrize("case", CHAT.values(), ids=CHAT)
def test_chat_field(post: Callable[..., Outcome], case: Case) -> None:
    check(post, "/v1/chat/completions", {"model": "scripted", "messages": SAY, "seed": 1, "temperature": 0}, case)


@pytest.mark.parametrize("case", COMPLETIONS.values(), ids=COMPLETIONS)
def test_completion_field(post: Callable[..., Outcome], case: Case) -> None:
    check(post, "/v1/completions", {"model": "scripted", "prompt": "say one two three", "temperature": 0}, case)


def structs_in(annotation: Any) -> Iterator[type[msgspec.Struct]]:
    """Yield the structs that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from structs_in(argument)


def fields_of(body: type[msgspec.Struct]) -> set[str]:
    """Return every field of a body and of all that it may contain, as "Struct.field"."""
    found: set[str] = set()
    open_structs, seen = [body], {body}
    while open_structs:
        struct = open_structs.pop()
        for field in msgspec.structs.fields(struct):
            found.add(f"{struct.__name__}.{field.name}")
            inner = set(structs_in(field.type)) - seen
            seen |= inner
            open_structs += inner
    return found


def test_no_field_is_forgotten() -> None:
    assert fields_of(wire.ChatBody) == set(CHAT)
    nested = {name for name in CHAT if name.startswith(("StreamOptions.", "StructuredOutputs."))}
    assert fields_of(wire.CompletionBody) == set(COMPLETIONS) | nested


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_unknown_field_is_refused_by_name(client: httpx.Client, path: str) -> None:
    response = client.post(path, json={"model": "scripted", "messages": SAY, "prompt": "a", "zeal": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("zeal", "prompt", "messages")
