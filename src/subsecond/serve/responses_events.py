"""Parts of an answer to the items and typed events of the responses API, in the order in which clients expect them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from subsecond.core.errors import SubsecondError
from subsecond.models.tool_calls import ToolCallDelta
from subsecond.serve.answers import AnswerPart, SampleAnswer
from subsecond.serve.logprob_entries import TokenBytes, logprob_entries
from subsecond.serve.openai_chat import content_logprobs

Event = dict[str, Any]
_STATUS = {"stop": "completed", "tool_calls": "completed"}
_INCOMPLETE = {"length": "max_output_tokens"}


@dataclass(slots=True)
class _OpenItem:
    """The item that is being written: its kind, its place among the items, and its text so far."""

    kind: str
    index: int
    item: dict[str, Any]
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ResponseWriter:
    """Turns the parts of one answer into events and keeps what they come to; used once.

    `make_body` returns the response as this writer has it, which the first and the last events carry.
    """

    def __init__(
        self,
        make_body: Callable[[ResponseWriter], dict[str, Any]],
        *,
        token_bytes: TokenBytes,
        places: dict[str, tuple[str, str]] | None = None,
        has_logprobs: bool = False,
    ) -> None:
        self.items: list[dict[str, Any]] = []
        self.status = "in_progress"
        self.incomplete_reason: str | None = None
        self.error: SubsecondError | None = None
        self._make_body = make_body
        self._token_bytes = token_bytes
        self._places = places or {}
        self._has_logprobs = has_logprobs
        self._open: _OpenItem | None = None
        self._call_index = -1
        self._num_events = 0

    def begin(self) -> list[Event]:
        """Return what stands before the first part."""
        body = self._make_body(self)
        return [self._event("response.created", response=body), self._event("response.in_progress", response=body)]

    def push(self, part: AnswerPart) -> list[Event]:
        """Return the events of the next part."""
        events: list[Event] = []
        if part.reasoning:
            self._take_text("reasoning", part.reasoning, None, events)
        if part.text:
            self._take_text("message", part.text, part, events)
        for delta in part.tool_calls:
            self._take_call(delta, events)
        if part.end_reason is not None:
            self.status = _STATUS.get(part.end_reason, "incomplete")
            self.incomplete_reason = (
                None if self.status == "completed" else _INCOMPLETE.get(part.end_reason, part.end_reason)
            )
            if self._open is None and not self.items:
                self._start("message", events)  # clients look for a message, also where the model said nothing
            self._close(events)
        return events

    def push_whole(self, answer: SampleAnswer) -> None:
        """Take all parts at once, for a response without events."""
        calls = tuple(ToolCallDelta(n, call.name, call.arguments) for n, call in enumerate(answer.tool_calls))
        text, reasoning = answer.text, answer.reasoning
        self.push(AnswerPart(0, text, reasoning, calls, answer.token_ids, answer.logprobs, answer.end_reason))

    def finish(self) -> list[Event]:
        """Return the last event, behind the last part."""
        return [self._event(f"response.{self.status}", response=self._make_body(self))]

    def fail(self, error: SubsecondError) -> list[Event]:
        """Return the last event of an answer that an error ended."""
        self.status, self.error = "failed", error
        return self.finish()

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event

    def _take_text(self, kind: str, text: str, part: AnswerPart | None, events: list[Event]) -> None:
        if self._open is None or self._open.kind != kind:
            self._start(kind, events)
        opened = self._open
        assert opened is not None, "an item was opened for the text"
        opened.pieces.append(text)
        place = {"item_id": opened.item["id"], "output_index": opened.index, "content_index": 0, "delta": text}
        if kind == "reasoning":
            events.append(self._event("response.reasoning_text.delta", **place))
            return
        entries: list[dict[str, Any]] = []
        if part is not None and self._has_logprobs:
            logprobs = content_logprobs(part.logprobs, part.end_reason, part.stop)
            entries = logprob_entries(logprobs, self._token_bytes)
        opened.logprobs += entries
        events.append(self._event("response.output_text.delta", **place, logprobs=entries))

    def _take_call(self, delta: ToolCallDelta, events: list[Event]) -> None:
        if delta.index != self._call_index or self._open is None or self._open.kind != "function_call":
            self._call_index = delta.index
            self._start("function_call", events, name=delta.name)
        opened = self._open
        assert opened is not None, "an item was opened for the call"
        if delta.arguments:
            opened.pieces.append(delta.arguments)
            place = {"item_id": opened.item["id"], "output_index": opened.index, "delta": delta.arguments}
            events.append(self._event("response.function_call_arguments.delta", **place))

    def _start(self, kind: str, events: list[Event], name: str | None = None) -> None:
        self._close(events)
        item = self._new_item(kind, name)
        self._open = _OpenItem(kind, len(self.items), item)
        self.items.append(item)
        events.append(self._event("response.output_item.added", output_index=self._open.index, item=dict(item)))
        if kind != "function_call":
            part = self._content(kind, "", [])
            events.append(self._event("response.content_part.added", **self._content_place(), part=part))

    def _new_item(self, kind: str, name: str | None) -> dict[str, Any]:
        number = secrets.token_hex(12)
        if kind == "reasoning":
            return {"id": f"rs_{number}", "type": kind, "summary": [], "content": [], "status": "in_progress"}
        if kind == "message":
            return {"id": f"msg_{number}", "type": kind, "role": "assistant", "content": [], "status": "in_progress"}
        assert name is not None, "the first piece of a call has its name"
        item = {"id": f"fc_{number}", "type": kind, "call_id": f"call_{number}", "name": name, "arguments": ""}
        if name in self._places:
            item["namespace"], item["name"] = self._places[name]
        return item | {"status": "in_progress"}

    def _content(self, kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        if kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _content_place(self) -> dict[str, Any]:
        assert self._open is not None, "only an open item has a place"
        return {"item_id": self._open.item["id"], "output_index": self._open.index, "content_index": 0}

    def _close(self, events: list[Event]) -> None:
        """Write the end of the open item, if there is one; it is whole unless the answer ended within it."""
        opened = self._open
        if opened is None:
            return
        text, item = "".join(opened.pieces), opened.item
        item["status"] = "incomplete" if self.status == "incomplete" else "completed"
        if opened.kind == "function_call":
            item["arguments"] = text
            place = {"item_id": item["id"], "output_index": opened.index, "name": item["name"], "arguments": text}
            events.append(self._event("response.function_call_arguments.done", **place))
        else:
            content = self._content(opened.kind, text, opened.logprobs)
            item["content"] = [content]
            name = "reasoning_text" if opened.kind == "reasoning" else "output_text"
            more = {} if opened.kind == "reasoning" else {"logprobs": opened.logprobs}
            place = self._content_place()
            events.append(self._event(f"response.{name}.done", **place, text=text, **more))
            events.append(self._event("response.content_part.done", **place, part=content))
        events.append(self._event("response.output_item.done", output_index=opened.index, item=dict(item)))
        self._open = None
