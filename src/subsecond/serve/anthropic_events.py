"""Parts of an answer to the blocks and events of the messages API, in the order in which clients expect them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from subsecond.models.tool_calls import ToolCall, ToolCallDelta
from subsecond.serve.answers import Answer, AnswerPart, AnswerUsage, EndReason, SampleAnswer
from subsecond.serve.served_info import served_fields

Event = dict[str, Any]
SIGNATURE = "unsigned"
"""Stands where the vendor signs reasoning; some clients do not send reasoning back without any."""

PING: Event = {"type": "ping"}


class MessageWriter:
    """Turns one answer into a message, whole or as events; used once.

    `shows_thinking` is false for a client that wishes to pay for reasoning without reading it.
    """

    def __init__(
        self, answer: Answer, *, model: str, shows_thinking: bool = True, left_out: Sequence[str] = ()
    ) -> None:
        self._answer = answer
        self._model = model
        self._shows_thinking = shows_thinking
        self._left_out = left_out
        self._open: str | None = None
        self._num_blocks = 0
        self._call_index = -1
        self._last: AnswerPart | None = None

    def whole(self, sample: SampleAnswer) -> dict[str, Any]:
        """Return the message of a whole answer."""
        content: list[dict[str, Any]] = []
        if sample.reasoning and self._shows_thinking:
            content.append({"type": "thinking", "thinking": sample.reasoning, "signature": SIGNATURE})
        if sample.text or not sample.tool_calls:
            content.append({"type": "text", "text": sample.text})
        content += [
            {"type": "tool_use", "id": _call_id(), "name": call.name, "input": _arguments(call)}
            for call in sample.tool_calls
        ]
        reason, stop = self._stop_reason(sample.end_reason, sample.stop)
        message = self._message(content, usage_fields(self._answer.usage))
        message |= {"stop_reason": reason, "stop_sequence": stop}
        return message | {"subsecond": served_fields(self._answer.served, self._left_out)}

    def begin(self) -> list[Event]:
        """Return what stands before the first part; how much of the prompt was cached comes with the last event."""
        usage = {**usage_fields(self._answer.usage), "output_tokens": 0}
        return [{"type": "message_start", "message": self._message([], usage)}, PING]

    def push(self, part: AnswerPart) -> list[Event]:
        """Return the events of the next part."""
        events: list[Event] = []
        if part.reasoning and self._shows_thinking:
            if self._open != "thinking":
                self._start({"type": "thinking", "thinking": "", "signature": ""}, events)
            events.append(self._delta({"type": "thinking_delta", "thinking": part.reasoning}))
        if part.text:
            if self._open != "text":
                self._start({"type": "text", "text": ""}, events)
            events.append(self._delta({"type": "text_delta", "text": part.text}))
        for delta in part.tool_calls:
            self._take_call(delta, events)
        if part.end_reason is not None:
            self._last = part
            if not self._num_blocks:
                self._start({"type": "text", "text": ""}, events)
            self._close(events)
        return events

    def finish(self) -> list[Event]:
        """Return what stands behind the last part."""
        assert self._last is not None and self._last.end_reason is not None, "the last part has an end reason"
        reason, stop = self._stop_reason(self._last.end_reason, self._last.stop)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        ended = {"type": "message_delta", "delta": delta, "usage": usage_fields(self._answer.usage)}
        ended["subsecond"] = served_fields(self._answer.served, self._left_out)
        return [ended, {"type": "message_stop"}]

    def _message(self, content: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._answer.id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _stop_reason(self, end_reason: EndReason, stop: str | None) -> tuple[str, str | None]:
        if end_reason == "tool_calls":
            return "tool_use", None
        if end_reason == "stop":
            return ("end_turn", None) if stop is None else ("stop_sequence", stop)
        max_tokens = self._answer.order.params.max_tokens
        is_full = max_tokens is not None and self._answer.usage.completion_tokens < max_tokens
        # a deadline is told in `subsecond`, as clients know no such reason
        return ("model_context_window_exceeded" if is_full and end_reason == "length" else "max_tokens"), None

    def _take_call(self, delta: ToolCallDelta, events: list[Event]) -> None:
        if delta.index != self._call_index or self._open != "tool_use":
            self._call_index = delta.index
            self._start({"type": "tool_use", "id": _call_id(), "name": delta.name, "input": {}}, events)
        if delta.arguments:
            events.append(self._delta({"type": "input_json_delta", "partial_json": delta.arguments}))

    def _start(self, block: dict[str, Any], events: list[Event]) -> None:
        self._close(events)
        self._open = block["type"]
        events.append({"type": "content_block_start", "index": self._num_blocks, "content_block": block})
        self._num_blocks += 1

    def _delta(self, delta: dict[str, str]) -> Event:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}

    def _close(self, events: list[Event]) -> None:
        if self._open is None:
            return
        if self._open == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": SIGNATURE}))
        events.append({"type": "content_block_stop", "index": self._num_blocks - 1})
        self._open = None


def usage_fields(usage: AnswerUsage) -> dict[str, int]:
    """Return tokens as this API counts them: those of the prompt that were cached stand apart from the others."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _call_id() -> str:
    return f"toolu_{secrets.token_hex(12)}"


def _arguments(call: ToolCall) -> dict[str, Any]:
    """The arguments as the object that this API wants; of a call that was cut off, the text as far as it came."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except msgspec.DecodeError:
        arguments = None
    return arguments if isinstance(arguments, dict) else {"unparsed": call.arguments}
