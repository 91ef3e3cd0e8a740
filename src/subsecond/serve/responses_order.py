"""A request of the responses API to the order it comes to: items to messages, settings to parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.models.prompt import Message
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
from subsecond.serve.responses_offer import OfferedTools, name_for_model, offered_tools
from subsecond.serve.responses_types import (
    ContentPart,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputText,
    MessageItem,
    OutputText,
    ReasoningItem,
    Refusal,
    ResponsesRequest,
    TextFormat,
)
from subsecond.serve.thinking import ThinkingWish

HARMLESS = (
    "client_metadata",
    "max_tool_calls",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "user",
)
"""Fields that change no answer: answers repeat some, and the rest concern what only the vendor's servers have."""

DEFAULT_TEMPERATURE = 1.0
LOGPROBS = "message.output_text.logprobs"
MAX_ITEMS = 10_000
MAX_PARTS = 10_000
MAX_METADATA = 16
MAX_LABEL_CHARS = 512
_INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content")  # reasoning stands in the clear, so nothing need be encrypted
_SETTINGS = {"max_output_tokens": "max_tokens", "top_logprobs": "num_logprobs"}


@dataclass(frozen=True, slots=True)
class ResponseOrder:
    """What a request comes to.

    order    None for a request without anything to answer, which some clients send to try a server
    history  messages to continue from when the answer is kept: what was said, without the instructions
    """

    order: Order | None
    offered: OfferedTools
    wish: ThinkingWish | None
    history: tuple[Message, ...]


def response_order(request: ResponsesRequest, earlier: Sequence[Message] = ()) -> ResponseOrder:
    """Return the order of a request that follows `earlier` messages.

    Raises:
        FieldError: a field that is not honoured here, or a value that is not allowed.
    """
    _refuse_what_there_is_not(request)
    offered = offered_tools(request.tools, request.tool_choice)
    history = (*earlier, *_messages(request.input))
    params = sampling_params(
        {
            "temperature": DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": request.min_p,
            "repetition_penalty": request.repetition_penalty,
            "seed": request.seed,
            "stop": stop_texts("stop", request.stop),
            "max_output_tokens": request.max_output_tokens,
            "top_logprobs": request.top_logprobs,
        },
        _SETTINGS,
    )
    order = Order(
        model=request.model,
        params=params,
        messages=_instructed(request.instructions, history),
        has_logprobs=LOGPROBS in (request.include or ()) or params.num_logprobs > 0,
        tools=offered.tools,
        tool_choice=offered.choice,
        is_parallel=request.parallel_tool_calls is not False,
        output=_output_format(request.text.format if request.text else None),
        priority=checked_priority(request.priority),
        deadline_ms=checked_deadline_ms(request.deadline_ms),
    )
    return ResponseOrder(order if history else None, offered, _wish(request), history)


def _refuse_what_there_is_not(request: ResponsesRequest) -> None:
    refuse_given({"background": request.background}, "answers are given at once here; leave it out or give false")
    refuse_given({"conversation": request.conversation}, "conversations are not kept here; give previous_response_id")
    refuse_given({"prompt": request.prompt}, "there are no stored prompts here; send the text as instructions")
    refuse_given({"context_management": request.context_management}, "nothing is compacted here; send less")
    refuse_given({"moderation": request.moderation}, "nothing is moderated here; leave it out")
    if request.truncation == "auto":
        refuse("truncation", "nothing is cut from a prompt here; give disabled, or a shorter input")
    if request.service_tier not in (None, "auto", "default"):
        refuse("service_tier", "there is one tier here; give auto or default, and priority to be served earlier")
    if request.text and request.text.verbosity not in (None, "medium"):
        refuse("text.verbosity", "models here know no verbosity; say in the instructions how long the answer shall be")
    if request.stream_options and request.stream_options.include_obfuscation:
        refuse("stream_options.include_obfuscation", "events are not padded here; give false")
    _check_labels(request)
    check_count("include", request.include, len(_INCLUDABLE))
    for number, name in enumerate(request.include or ()):
        if name not in _INCLUDABLE:
            refuse(f"include[{number}]", f"{name[:80]!r} does not exist here; allowed are {', '.join(_INCLUDABLE)}")


def _check_labels(request: ResponsesRequest) -> None:
    """Refuse what is only repeated by the response and is too long to be kept and sent for nothing."""
    check_count("metadata", request.metadata, MAX_METADATA)
    for name, value in (request.metadata or {}).items():
        if len(name) + len(value) > MAX_LABEL_CHARS + 64:
            refuse("metadata", f"{name[:50]!r} is too long; names have at most 64 characters, values {MAX_LABEL_CHARS}")
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        if len(getattr(request, name) or "") > MAX_LABEL_CHARS:
            refuse(name, f"is longer than {MAX_LABEL_CHARS} characters; give a shorter one")


def _wish(request: ResponsesRequest) -> ThinkingWish | None:
    reasoning = request.reasoning
    if reasoning is None:
        return None
    if reasoning.mode not in (None, "standard"):
        refuse("reasoning.mode", "there is one mode here; give standard or leave it out")
    if reasoning.context == "all_turns":
        refuse("reasoning.context", "which earlier reasoning a model sees is up to its template; give auto")
    if reasoning.effort is None:
        return None
    if reasoning.effort == "none":
        return ThinkingWish("off", "reasoning.effort")
    # an effort bounds the reasoning, which a model that does not reason keeps to
    return ThinkingWish("able", "reasoning.effort", reasoning.effort)


def _output_format(given: TextFormat | None) -> OutputFormat | None:
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return OutputFormat("json_object")
    if given.schema is None:
        refuse("text.format.schema", "json_schema needs the schema")
    return OutputFormat("json_schema", msgspec.json.encode(given.schema).decode(), is_strict=bool(given.strict))


def _instructed(instructions: str | None, history: Sequence[Message]) -> tuple[Message, ...]:
    """The messages behind the instructions, what the system says first in one message: few templates take two."""
    num_leading = next((n for n, message in enumerate(history) if message["role"] != "system"), len(history))
    texts = [instructions] if instructions else []
    texts += [message["content"] for message in history[:num_leading]]
    system = [{"role": "system", "content": "\n\n".join(texts)}] if texts else []
    # a conversation of nothing is refused where there is nothing to answer
    return (*system, *history[num_leading:])


def _messages(given: str | Sequence[msgspec.Raw] | None) -> list[Message]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}] if given else []
    check_count("input", given, MAX_ITEMS)
    turns = _Turns()
    for number, raw in enumerate(given or ()):
        turns.add(raw, f"input[{number}]")
    return turns.finish()


class _Turns:
    """Puts items together into messages: reasoning, text and calls of one answer are one message of the assistant."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._answer: dict[str, Any] | None = None

    def add(self, raw: msgspec.Raw, where: str) -> None:
        """Take the next item."""
        kind = kind_of_part(raw, where)
        if kind in (None, "message"):
            self._add_message(decode_part(raw, MessageItem, where), where)
        elif kind == "function_call":
            self._add_call(decode_part(raw, FunctionCallItem, where), where)
        elif kind == "function_call_output":
            self._add_output(decode_part(raw, FunctionCallOutputItem, where), where)
        elif kind == "reasoning":
            self._add_reasoning(decode_part(raw, ReasoningItem, where))
        else:
            refuse(
                f"{where}.type",
                f"{str(kind)[:50]!r} is not read here; allowed are message, function_call, function_call_output and "
                "reasoning",
            )

    def finish(self) -> list[Message]:
        """Return the messages, now that no more items come."""
        self._close()
        return self._messages

    def _add_message(self, item: MessageItem, where: str) -> None:
        text = _text(item.content, f"{where}.content")
        if item.role == "assistant":
            answer = self._open("content")
            answer["content"] = text
            return
        self._close()
        role = "user" if item.role == "user" else "system"
        self._messages.append({"role": role, "content": text})

    def _add_call(self, item: FunctionCallItem, where: str) -> None:
        if item.caller is not None and item.caller != {"type": "direct"}:
            refuse(f"{where}.caller", "programs are not run here; only a direct call is read")
        name = name_for_model(item.name, item.namespace)
        call = {"id": item.call_id, "type": "function", "function": {"name": name, "arguments": item.arguments}}
        if self._answer is None:
            self._answer = {"role": "assistant", "content": None}
        self._answer.setdefault("tool_calls", []).append(call)

    def _add_output(self, item: FunctionCallOutputItem, where: str) -> None:
        if item.caller is not None and item.caller != {"type": "direct"}:
            refuse(f"{where}.caller", "programs are not run here; only a direct call is read")
        self._close()
        message = {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output, f"{where}.output")}
        if item.name:
            message["name"] = name_for_model(item.name, item.namespace)
        self._messages.append(message)

    def _add_reasoning(self, item: ReasoningItem) -> None:
        # what only another server can decrypt, and summaries, are no reasoning of this model
        text = "\n".join(part.text for part in item.content or ())
        if text:
            self._open("reasoning_content")["reasoning_content"] = text

    def _open(self, field: str) -> dict[str, Any]:
        """The answer that a part belongs to: a part of its kind, or behind calls, begins a new one."""
        answer = self._answer
        if answer is not None and (answer.get(field) or answer.get("tool_calls") or field == "reasoning_content"):
            self._close()
        if self._answer is None:
            self._answer = {"role": "assistant", "content": None}
        return self._answer

    def _close(self) -> None:
        if self._answer is not None:
            answer, self._answer = self._answer, None
            if answer["content"] is None and "tool_calls" not in answer:
                answer["content"] = ""
            self._messages.append(answer)


def _text(content: str | Sequence[ContentPart], where: str) -> str:
    """The text of a content; its parts stand on lines of their own."""
    if isinstance(content, str):
        return content
    check_count(where, content, MAX_PARTS)
    texts = []
    for number, part in enumerate(content):
        if isinstance(part, InputText | OutputText):
            texts.append(part.text)
        elif isinstance(part, Refusal):
            texts.append(part.refusal)
        else:
            kind = type(part).__struct_config__.tag
            refuse(f"{where}[{number}].type", f"{kind} is not read here: models are given text alone")
    return "\n".join(texts)
