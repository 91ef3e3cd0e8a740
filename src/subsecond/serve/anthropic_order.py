"""A request of the messages API to the order it comes to: blocks to messages, settings to parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.engine.request import SamplingParams
from subsecond.models.prompt import Message
from subsecond.models.tool_calls import Tool, ToolChoice
from subsecond.serve import anthropic_types as wire
from subsecond.serve.fields import (
    check_count,
    checked_deadline_ms,
    checked_priority,
    decode_part,
    kind_of_part,
    refuse,
    refuse_given,
    sampling_params,
    stop_texts,
)
from subsecond.serve.order import Order
from subsecond.serve.thinking import ThinkingWish

HARMLESS = ("cache_control", "metadata", "user_profile_id")
"""Fields that change no answer: whom it is for, and where a prompt may be cached, which needs no telling here."""

DEFAULT_TEMPERATURE = 1.0
MAX_TOOLS = 512
MAX_MESSAGES = 10_000
MAX_BLOCKS = 20_000
BILLING_HEADER = "x-anthropic-billing-header:"
"""Begins a text that an agent puts before its system prompt for the vendor's accounts. It differs each time and so
would keep prompts from sharing their cached blocks; it is left out, and answers say so."""

_MODES = {"auto": ToolChoice("auto"), "any": ToolChoice("required"), "none": ToolChoice("none")}
_UNREAD = {
    wire.ImageBlock: "pictures are",
    wire.DocumentBlock: "documents are",
    wire.SearchResultBlock: "search results are",
}


def messages_order(body: wire.MessagesRequest) -> Order:
    """Return the order of a request, its wish for reasoning aside.

    Raises:
        FieldError: a field that is not honoured here, or a value that is not allowed.
    """
    refuse_given({"container": body.container}, "nothing is run in containers here; leave it out")
    refuse_given({"diagnostics": body.diagnostics}, "prompts are not compared here; leave it out")
    refuse_given({"inference_geo": body.inference_geo}, "answers are made on this machine; leave it out")
    if body.service_tier not in (None, "auto", "standard_only"):
        refuse("service_tier", "there is one tier here; give auto, and priority to be served earlier")
    budget = body.thinking.budget_tokens if body.thinking else None
    if budget is not None and not 0 < budget < body.max_tokens:
        refuse("thinking.budget_tokens", f"{budget} is not allowed; give 1 to max_tokens - 1")
    params = sampling_params(
        {
            "max_tokens": body.max_tokens,
            "temperature": DEFAULT_TEMPERATURE if body.temperature is None else body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "min_p": body.min_p,
            "seed": body.seed,
            "stop_sequences": stop_texts("stop_sequences", body.stop_sequences),
        },
        {"stop_sequences": "stop"},
    )
    return _order(body, params, checked_priority(body.priority), checked_deadline_ms(body.deadline_ms))


def prompt_order(body: wire.PromptBody) -> Order:
    """Return the order whose prompt is to be counted."""
    return _order(body, SamplingParams(), 0, None)


def thinking_wish(body: wire.PromptBody) -> ThinkingWish | None:
    """Return what the request says about reasoning.

    How many tokens it may take is a target that no model here knows; max_tokens bounds it with the answer.
    """
    effort = body.output_config.effort if body.output_config else None
    thinking = body.thinking
    if thinking is None:
        return None if effort is None else ThinkingWish("default", "output_config.effort", effort)
    if thinking.type == "between_tools":
        refuse("thinking.type", "'between_tools' is not done here; give adaptive, enabled or disabled")
    if thinking.type == "disabled":
        return ThinkingWish("off", "thinking")
    if thinking.type == "enabled" and thinking.budget_tokens is None:
        refuse("thinking.budget_tokens", "is missing; give 1 to max_tokens - 1, or thinking.type adaptive")
    return ThinkingWish("on" if thinking.type == "enabled" else "able", "thinking", effort)


def left_out(body: wire.PromptBody) -> tuple[str, ...]:
    """Return what of a request goes without effect, for its answer to say."""
    blocks = [] if body.system is None or isinstance(body.system, str) else body.system
    has_header = any(block.text.startswith(BILLING_HEADER) for block in blocks)
    has_redacted = any(
        isinstance(block, wire.RedactedThinkingBlock)
        for message in body.messages
        if not isinstance(message.content, str)
        for block in message.content
    )
    return ("billing_header",) * has_header + ("redacted_thinking",) * has_redacted


def _order(body: wire.PromptBody, params: SamplingParams, priority: int, deadline_ms: float | None) -> Order:
    _refuse_what_there_is_not(body)
    tools, choice, is_parallel = _tools(body)
    messages = _messages(body)
    if "tool_calls" in messages[-1]:
        refuse(f"messages[{len(body.messages) - 1}]", "calls tools; give what came of the calls as the next message")
    return Order(
        model=body.model,
        params=params,
        messages=messages,
        tools=tools,
        tool_choice=choice,
        is_parallel=is_parallel,
        output=_output_format(body.output_config),
        is_continuation=messages[-1]["role"] == "assistant",
        priority=priority,
        deadline_ms=deadline_ms,
    )


def _refuse_what_there_is_not(body: wire.PromptBody) -> None:
    if not body.messages:
        refuse("messages", "is empty; give at least one message")
    check_count("messages", body.messages, MAX_MESSAGES)
    num_blocks = sum(len(message.content) for message in body.messages if not isinstance(message.content, str))
    if num_blocks > MAX_BLOCKS:
        refuse("messages", f"{num_blocks} blocks are too many; at most {MAX_BLOCKS} are allowed")
    refuse_given({"mcp_servers": body.mcp_servers}, "other servers are not called from here; leave it out")
    if body.speed not in (None, "standard"):
        refuse("speed", "there is one speed here; give standard, and priority to be served earlier")
    management = body.context_management or {}
    for number, edit in enumerate(management.get("edits") or ()):
        kind = str(edit.get("type")) if isinstance(edit, dict) else ""
        # which earlier reasoning a model sees is up to its template in any case
        if not kind.startswith("clear_thinking"):
            refuse(f"context_management.edits[{number}].type", f"{kind[:50]!r} is not done here; send less instead")
    unknown = sorted(set(management) - {"edits"})
    if unknown:
        refuse(f"context_management.{unknown[0][:50]}", "is not known here; leave it out")


def _tools(body: wire.PromptBody) -> tuple[tuple[Tool, ...], ToolChoice | None, bool]:
    """Return the tools, the choice among them, and whether one answer may call several times."""
    given, choice = body.tools or [], body.tool_choice
    check_count("tools", given, MAX_TOOLS)
    tools = tuple(_tool(raw, f"tools[{number}]") for number, raw in enumerate(given))
    if choice is None:
        return tools, None, True
    if choice.type != "tool" and choice.name is not None:
        refuse("tool_choice.name", "only the type 'tool' has a name; leave it out")
    if choice.type == "tool" and choice.name is None:
        refuse("tool_choice.name", "is missing; name the tool")
    if choice.type == "tool" and choice.name not in {tool.name for tool in tools}:
        refuse("tool_choice.name", f"{str(choice.name)[:80]!r} is none of the tools")
    if not tools and choice.type == "any":
        refuse("tool_choice.type", "there are no tools; give some, or leave the choice out")
    chosen = ToolChoice("named", choice.name) if choice.type == "tool" else _MODES[choice.type]
    return tools, chosen, not choice.disable_parallel_tool_use


def _tool(raw: msgspec.Raw, where: str) -> Tool:
    kind = kind_of_part(raw, where)
    if kind not in (None, "custom"):
        refuse(f"{where}.type", f"{kind[:50]!r} is not run here; give tools with an input_schema of their own")
    tool = decode_part(raw, wire.ToolBody, where)
    if tool.defer_loading:
        refuse(f"{where}.defer_loading", "tools are not searched for here; offer the tool at once")
    if tool.allowed_callers is not None and tool.allowed_callers != ["direct"]:
        refuse(f"{where}.allowed_callers", "programs are not run here; only ['direct'] is allowed")
    refuse_given({f"{where}.input_examples": tool.input_examples}, "put the examples into the description")
    return Tool(tool.name, tool.description or "", tool.input_schema, is_strict=bool(tool.strict))


def _output_format(config: wire.OutputConfig | None) -> OutputFormat | None:
    if config is None or config.format is None:
        return None
    return OutputFormat("json_schema", bytes(config.format.schema).decode())


def _messages(body: wire.PromptBody) -> tuple[Message, ...]:
    messages: list[dict[str, Any]] = []
    if body.system:
        blocks = [body.system] if isinstance(body.system, str) else [block.text for block in body.system]
        text = "\n\n".join(block for block in blocks if not block.startswith(BILLING_HEADER))
        if text:
            messages.append({"role": "system", "content": text})
    names: dict[str, str] = {}
    for number, message in enumerate(body.messages):
        where = f"messages[{number}].content"
        if not message.content:
            refuse(where, "is empty; give text, or leave the message out")
        if message.role == "assistant":
            _merge(messages, _answer(message.content, where, names))
        else:
            for said in _said(message.role, message.content, where, names):
                _merge(messages, said)
    return tuple(messages)


def _merge(messages: list[dict[str, Any]], said: dict[str, Any]) -> None:
    """Add a message; what one side says in several is one turn, since many templates take no two in a row."""
    last = messages[-1] if messages else None
    is_text = said["role"] != "tool" and last is not None and "tool_calls" not in last
    if last is None or not is_text or last["role"] != said["role"]:
        messages.append(said)
        return
    for field in ("content", "reasoning_content"):
        texts = [each[field] for each in (last, said) if each.get(field)]
        if texts:
            last[field] = "\n\n".join(texts)
    if "tool_calls" in said:
        last["tool_calls"] = said["tool_calls"]


def _said(role: str, content: str | Sequence[wire.Block], where: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """The messages that one message of the user comes to: results of calls and texts, in their order."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    said: list[dict[str, Any]] = []
    for number, block in enumerate(content):
        place = f"{where}[{number}]"
        if isinstance(block, wire.ToolResultBlock) and role == "user":
            said.append(_result(block, place, names))
        elif isinstance(block, wire.TextBlock):
            if said and said[-1]["role"] == role:
                said[-1]["content"] += "\n" + block.text
            else:
                said.append({"role": role, "content": block.text})
        else:
            _refuse_block(block, place, role)
    return said


def _result(block: wire.ToolResultBlock, where: str, names: dict[str, str]) -> dict[str, Any]:
    refuse_given({f"{where}.toolset_name": block.toolset_name}, "toolsets are not known here")
    text = block.content or ""
    if not isinstance(text, str):
        texts = []
        for number, part in enumerate(text):
            if not isinstance(part, wire.TextBlock):
                _refuse_block(part, f"{where}.content[{number}]", "tool_result")
            texts.append(part.text)
        text = "\n".join(texts)
    if block.is_error:
        text = f"Error: {text}"  # templates have no other place for it
    message = {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
    if block.tool_use_id in names:
        message["name"] = names[block.tool_use_id]
    return message


def _answer(content: str | Sequence[wire.Block], where: str, names: dict[str, str]) -> dict[str, Any]:
    """The one message that an earlier answer is, and `names` with the names of its calls by their numbers."""
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(content):
        if isinstance(block, wire.TextBlock):
            texts.append(block.text)
        elif isinstance(block, wire.ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, wire.ToolUseBlock):
            if block.caller is not None and block.caller.get("type") != "direct":
                refuse(f"{where}[{number}].caller", "programs are not run here; only a direct call is read")
            refuse_given({f"{where}[{number}].toolset_name": block.toolset_name}, "toolsets are not known here")
            names[block.id] = block.name
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, wire.RedactedThinkingBlock):
            _refuse_block(block, f"{where}[{number}]", "assistant")
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    return message | {"tool_calls": calls} if calls else message


def _refuse_block(block: wire.Block, where: str, role: str) -> NoReturn:
    said = _UNREAD.get(type(block))
    if said is not None:
        refuse(f"{where}.type", f"{said} not read here: models are given text alone")
    refuse(f"{where}.type", f"a {role} message cannot have {type(block).__struct_config__.tag!r}")
