"""Answers in Ollama's form: lines of JSON as they come, or one object, with times in nanoseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from subsecond.engine.text import TokenLogprobs
from subsecond.models.tool_calls import ToolCall, ToolCallDelta, joined_calls
from subsecond.serve.answers import Answer, AnswerPart, EndReason, SampleAnswer
from subsecond.serve.logprob_entries import TokenBytes, logprob_entries
from subsecond.serve.openai_chat import content_logprobs
from subsecond.serve.served_info import served_fields

NS_PER_MS = 10**6
_WHY = {"stop": "stop", "tool_calls": "stop"}  # anything else is told as length, a deadline in `subsecond` too


@dataclass(frozen=True, slots=True)
class Clock:
    """When a request began and how long it waited for its model."""

    start_s: float
    load_s: float


Shape = Callable[[str, str, list[dict[str, Any]]], dict[str, Any]]
"""Text, reasoning and calls to the fields in which one of the two requests has them."""


def chat_shape(text: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a message, as /api/chat has it."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["thinking"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def generate_shape(text: str, reasoning: str, _: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a text, as /api/generate has it."""
    return {"response": text, "thinking": reasoning} if reasoning else {"response": text}


class ReplyWriter:
    """Turns one answer into lines or one object; used once."""

    def __init__(
        self, answer: Answer, *, model: str, shape: Shape, clock: Clock, token_bytes: TokenBytes | None
    ) -> None:
        """Write log-probabilities if `token_bytes` is given."""
        self._answer = answer
        self._model = model
        self._shape = shape
        self._clock = clock
        self._token_bytes = token_bytes
        self._deltas: list[ToolCallDelta] = []
        self._num_calls = 0

    def whole(self, sample: SampleAnswer) -> dict[str, Any]:
        """Return the one object of a whole answer."""
        calls = [_call(number, call) for number, call in enumerate(sample.tool_calls)]
        entries = self._entries(sample.logprobs, sample.end_reason, sample.stop)
        said = self._line(self._shape(sample.text, sample.reasoning, calls), entries)
        return said | self._ending(sample.end_reason)

    def push(self, part: AnswerPart) -> list[dict[str, Any]]:
        """Return the lines of the next part: a call is written when it is whole, the end in a line of its own."""
        lines: list[dict[str, Any]] = []
        calls = self._finished_calls(part.tool_calls, is_end=part.end_reason is not None)
        entries = self._entries(part.logprobs, part.end_reason, part.stop)
        if part.text or part.reasoning or calls or entries:
            lines.append(self._line(self._shape(part.text, part.reasoning, calls), entries))
        if part.end_reason is not None:
            lines.append(self._line(self._shape("", "", []), []) | self._ending(part.end_reason))
        return lines

    def _finished_calls(self, deltas: Iterable[ToolCallDelta], *, is_end: bool) -> list[dict[str, Any]]:
        """The calls that no further piece belongs to; a piece of the next call ends the one before."""
        finished: list[dict[str, Any]] = []
        for delta in deltas:
            if self._deltas and delta.index != self._deltas[-1].index:
                finished += self._take_call()
            self._deltas.append(delta)
        if is_end and self._deltas:
            finished += self._take_call()
        return finished

    def _take_call(self) -> list[dict[str, Any]]:
        (call,), self._deltas = joined_calls(self._deltas), []
        self._num_calls += 1
        return [_call(self._num_calls - 1, call)]

    def _entries(
        self, logprobs: Sequence[TokenLogprobs], end_reason: EndReason | None, stop: str | None
    ) -> list[dict[str, Any]]:
        if self._token_bytes is None:
            return []
        return logprob_entries(content_logprobs(logprobs, end_reason, stop), self._token_bytes)

    def _line(self, said: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
        line = {"model": self._model, "created_at": now_text(), **said, "done": False}
        return line | {"logprobs": entries} if entries else line

    def _ending(self, end_reason: EndReason) -> dict[str, Any]:
        ending = {"done": True, "done_reason": _WHY.get(end_reason, "length"), **self._times()}
        return ending | {"subsecond": served_fields(self._answer.served)}

    def _times(self) -> dict[str, int]:
        usage, served = self._answer.usage, self._answer.served
        return {
            "total_duration": int((time.perf_counter() - self._clock.start_s) * 1e9),
            "load_duration": int(self._clock.load_s * 1e9),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int((served.prefill_ms or 0.0) * NS_PER_MS),
            "eval_count": usage.completion_tokens,
            "eval_duration": int((served.decode_ms or 0.0) * NS_PER_MS),
        }


def empty_reply(model: str, said: dict[str, Any], reason: str, clock: Clock) -> dict[str, Any]:
    """Return the one object of a request that only asks for a model to be loaded or let go."""
    times = {"total_duration": int((time.perf_counter() - clock.start_s) * 1e9)}
    times["load_duration"] = int(clock.load_s * 1e9)
    return {"model": model, "created_at": now_text(), **said, "done": True, "done_reason": reason, **times}


def line_of(value: dict[str, Any]) -> bytes:
    """Return one line of a stream."""
    return msgspec.json.encode(value) + b"\n"


def now_text() -> str:
    """Return the time as this API writes it."""
    # once a token, for which strftime would take several times as long
    return datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _call(number: int, call: ToolCall) -> dict[str, Any]:
    """A call with its arguments as an object; of one that was cut off, the text as far as it came."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except msgspec.DecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"unparsed": call.arguments}
    return {"function": {"index": number, "name": call.name, "arguments": arguments}}
