"""A request of Ollama's API to the order it comes to: messages, options and formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.engine.request import SamplingParams
from subsecond.models.prompt import Message
from subsecond.models.tool_calls import Tool
from subsecond.serve import ollama_types as wire
from subsecond.serve.fields import (
    check_count,
    checked_deadline_ms,
    checked_priority,
    refuse,
    refuse_given,
    sampling_params,
    stop_texts,
)
from subsecond.serve.order import Order
from subsecond.serve.thinking import ThinkingWish

HARMLESS_OPTIONS = (
    "f16_kv",
    "low_vram",
    "main_gpu",
    "mirostat_eta",
    "mirostat_tau",
    "num_batch",
    "num_gpu",
    "num_keep",
    "num_thread",
    "numa",
    "use_mlock",
    "use_mmap",
)
"""Options that change no answer: how a model is loaded was settled when it was, and no prompt is ever cut."""

DEFAULT_TEMPERATURE = 0.8
DEFAULT_TOP_K = 40
DEFAULT_TOP_P = 0.9
MAX_TOOLS = 512
MAX_MESSAGES = 10_000
_EFFORTS = ("low", "medium", "high")
_ROLES = ("system", "user", "assistant", "tool")
_SETTINGS = {
    "options.num_predict": "max_tokens",
    "options.temperature": "temperature",
    "options.top_k": "top_k",
    "options.top_p": "top_p",
    "options.min_p": "min_p",
    "options.seed": "seed",
    "options.stop": "stop",
    "options.repeat_penalty": "repetition_penalty",
    "options.presence_penalty": "presence_penalty",
    "options.frequency_penalty": "frequency_penalty",
    "top_logprobs": "num_logprobs",
}
_DURATION = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?(?:ns|us|µs|ms|s|m|h))+|-?[0-9]+(?:\.[0-9]+)?")


def chat_order(body: wire.ChatRequest) -> Order | None:
    """Return the order of a conversation; None for one without messages, which only asks for the model to be loaded.

    Raises:
        FieldError: a field that is not honoured here, or a value that is not allowed.
    """
    check_count("tools", body.tools, MAX_TOOLS)
    check_count("messages", body.messages, MAX_MESSAGES)
    tools = tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(body.tools or ()))
    return _order(body, _messages(body.messages or ()), None, tools)


def generate_order(body: wire.GenerateRequest) -> Order | None:
    """Return the order of a prompt; None for one without, which only asks for the model to be loaded."""
    refuse_given({"suffix": body.suffix}, "text before which an answer ends is not done here; leave it out")
    refuse_given({"template": body.template}, "templates come with the models; give raw: true and the whole text")
    refuse_given({"context": body.context}, "token ids of earlier answers are not taken here; use /api/chat")
    refuse_given({"images": body.images}, "pictures are not read here: models are given text alone")
    refuse_given({"width": body.width, "height": body.height, "steps": body.steps}, "no pictures are made here")
    prompt = body.prompt or ""
    if body.raw:
        refuse_given({"system": body.system}, "raw: true goes without the chat template; put it into the prompt")
        refuse_given({"think": body.think}, "raw: true goes without the chat template; leave it out")
        return _order(body, (), prompt, ())
    system = [{"role": "system", "content": body.system}] if body.system else []
    return _order(body, (*system, {"role": "user", "content": prompt}) if prompt else (), None, ())


def thinking_wish(body: wire.AnswerBody) -> ThinkingWish | None:
    """Return what the request says about reasoning."""
    if body.think is None:
        return None
    if isinstance(body.think, bool):
        return ThinkingWish("on" if body.think else "off", "think")
    if body.think not in _EFFORTS:
        refuse("think", f"{body.think[:50]!r} is not allowed; give true, false, {', '.join(_EFFORTS)}")
    return ThinkingWish("on", "think", body.think)


def check_context(options: wire.OptionsBody | None, context_tokens: int) -> None:
    """FieldError if more context is asked for than there is. Less is no bound: nothing is cut to fit it."""
    num_ctx = options.num_ctx if options is not None else None
    if num_ctx is not None and not 0 < num_ctx <= context_tokens:
        refuse("options.num_ctx", f"{num_ctx} is not allowed; this model has a context of {context_tokens} tokens here")


def lets_go(body: wire.ModelBody) -> bool:
    """Return whether the model shall be let go after the request; other times to keep it are met as memory allows."""
    given = body.keep_alive
    if isinstance(given, str):
        if not _DURATION.fullmatch(given):
            refuse("keep_alive", f"{given[:50]!r} is no duration; give seconds, or a text such as 5m or 1h30m")
        return not any(digit in given for digit in "123456789")
    return given == 0


def check_options(options: wire.OptionsBody | None) -> SamplingParams:
    """Return the settings that options come to; FieldError for what is not done here."""
    options = options or wire.OptionsBody()
    off = {"typical_p": 1.0, "tfs_z": 1.0, "mirostat": 0, "penalize_newline": True}
    for name, value in off.items():
        if getattr(options, name) not in (None, value):
            refuse(f"options.{name}", f"is not done here; give {msgspec.json.encode(value).decode()} or leave it out")
    for name in ("logits_all", "vocab_only", "embedding_only"):
        refuse_given({f"options.{name}": getattr(options, name)}, "is not done here; give false or leave it out")
    penalties = {
        "options.repeat_penalty": options.repeat_penalty,
        "options.presence_penalty": options.presence_penalty,
        "options.frequency_penalty": options.frequency_penalty,
    }
    if options.repeat_last_n == 0:
        penalties = {}
    elif options.repeat_last_n not in (None, -1) and any(each is not None for each in penalties.values()):
        refuse("options.repeat_last_n", "penalties look at the whole prompt and answer here; give -1 or leave it out")
    top_k = DEFAULT_TOP_K if options.top_k is None else options.top_k
    return sampling_params(
        {
            "options.num_predict": None if options.num_predict in (-1, -2) else options.num_predict,
            "options.temperature": DEFAULT_TEMPERATURE if options.temperature is None else options.temperature,
            "options.top_k": 0 if top_k == -1 else top_k,
            "options.top_p": DEFAULT_TOP_P if options.top_p is None else options.top_p,
            "options.min_p": options.min_p,
            "options.seed": None if options.seed == -1 else options.seed,
            "options.stop": stop_texts("options.stop", options.stop),
            **penalties,
        },
        _SETTINGS,
    )


def _order(
    body: wire.AnswerBody, messages: Sequence[Message], prompt: str | None, tools: tuple[Tool, ...]
) -> Order | None:
    lets_go(body)
    if body.truncate:
        refuse("truncate", "nothing is cut from a prompt here; give false, or a shorter prompt")
    if body.shift:
        refuse("shift", "nothing is cut while an answer grows; give false, and a smaller num_predict")
    params, output = check_options(body.options), _output_format(body.format)
    if body.top_logprobs and not body.logprobs:
        refuse("top_logprobs", "needs logprobs: true")
    given = sampling_params({"top_logprobs": body.top_logprobs}, _SETTINGS)
    priority, deadline_ms = checked_priority(body.priority), checked_deadline_ms(body.deadline_ms)
    if not messages and not prompt:
        return None
    return Order(
        model=body.model,
        params=replace(params, num_logprobs=given.num_logprobs),
        messages=tuple(messages) or None,
        prompt=prompt or None,
        has_logprobs=bool(body.logprobs),
        tools=tools,
        output=output,
        is_continuation=bool(messages) and messages[-1]["role"] == "assistant",
        priority=priority,
        deadline_ms=deadline_ms,
    )


def _output_format(given: str | dict[str, Any] | None) -> OutputFormat | None:
    if given is None or given == "":
        return None
    if isinstance(given, str):
        if given != "json":
            refuse("format", f"{given[:50]!r} is not allowed; give json or a JSON schema")
        return OutputFormat("json_object")
    return OutputFormat("json_schema", msgspec.json.encode(given).decode())


def _tool(tool: wire.ToolBody, where: str) -> Tool:
    if tool.type != "function":
        refuse(f"{where}.type", f"{tool.type[:50]!r} is not run here; give function")
    function = tool.function
    return Tool(function.name, function.description or "", function.parameters or {}, is_strict=bool(function.strict))


def _messages(given: Sequence[wire.MessageBody]) -> list[Message]:
    messages: list[Message] = []
    open_calls: list[tuple[str, str]] = []
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        if message.role not in _ROLES:
            refuse(f"{where}.role", f"{message.role[:50]!r} is not allowed; give {', '.join(_ROLES)}")
        refuse_given({f"{where}.images": message.images}, "pictures are not read here: models are given text alone")
        _check_message(message, where)
        said: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            said["reasoning_content"] = message.thinking
        if message.tool_calls:
            calls = [(call.id or f"call_{number}_{place}", call) for place, call in enumerate(message.tool_calls)]
            open_calls = [(call_id, call.function.name) for call_id, call in calls]
            said["tool_calls"] = [
                _call(call_id, call, f"{where}.tool_calls[{place}]") for place, (call_id, call) in enumerate(calls)
            ]
        if message.role == "tool":
            said |= _called(message, open_calls)
        messages.append(said)
    return messages


def _check_message(message: wire.MessageBody, where: str) -> None:
    """FieldError for fields that belong to another role."""
    if message.role != "assistant":
        refuse_given({f"{where}.tool_calls": message.tool_calls}, "only the assistant calls tools")
        refuse_given({f"{where}.thinking": message.thinking}, "only the assistant reasons")
    if message.role != "tool":
        named = {f"{where}.tool_name": message.tool_name, f"{where}.tool_call_id": message.tool_call_id}
        refuse_given(named, "only the result of a tool has one")


def _call(call_id: str, call: wire.ToolCallBody, where: str) -> dict[str, Any]:
    if call.type not in (None, "function"):
        refuse(f"{where}.type", f"{call.type[:50]!r} is not run here; give function")
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call_id, "type": "function", "function": function}


def _called(message: wire.MessageBody, open_calls: list[tuple[str, str]]) -> dict[str, str]:
    """Which call a result belongs to: the one that it names, or else the first without a result."""
    wanted = message.tool_call_id or message.tool_name
    found = next((call for call in open_calls if wanted in call), open_calls[0] if open_calls else None)
    if found is not None:
        open_calls.remove(found)
    call_id, name = found or ("call", "")
    name = message.tool_name or name
    return {"tool_call_id": message.tool_call_id or call_id, **({"name": name} if name else {})}
