"""The text of an answer: token events through the detokenizer, split from reasoning, cut at stop strings."""

from __future__ import annotations

import weakref
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import aclosing, closing
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, cast

from subsecond.engine.request import FinishReason, TokenEvent
from subsecond.engine.stream import TokenStream
from subsecond.models.tool_calls import ToolCall, ToolCallDelta, joined_calls


class Detokenizer(Protocol):
    """Text of token ids that come one by one."""

    def push(self, token_id: int) -> str:
        """Return the whole characters that this token completes."""

    def finish(self) -> str:
        """Return what is left."""


class PartSplitter(Protocol):
    """Tells the reasoning before an answer from its text, token by token."""

    def push(self, token_id: int, text: str) -> tuple[str, str]:
        """Take a token and the text it completes; return the reasoning and the text that are certain now."""

    def finish(self, text: str) -> tuple[str, str]:
        """Take the last text; return what is left."""


class CallSplitter(Protocol):
    """Tells tool calls from the text of an answer, token by token."""

    def push(self, token_id: int, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Take a token and the text that is certain with it; return the text and the pieces of calls."""

    def finish(self, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Take the last text; return what is left."""


class _NoCalls:
    """The splitter of answers without tools: everything is text."""

    def push(self, _: int, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        return text, ()

    def finish(self, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        return text, ()


class _NoReasoning:
    """The splitter of models that do not reason: everything is text."""

    def push(self, _: int, text: str) -> tuple[str, str]:
        return "", text

    def finish(self, text: str) -> tuple[str, str]:
        return "", text


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of one token of the answer, and (token id, logprob) of the most likely ones at its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class TextChunk(NamedTuple):
    """The next piece of text with the tokens read since the piece before; `logprobs` is empty unless asked for.

    `reasoning` is the next piece of what the model writes before the answer; where both have text it comes first.
    `tool_calls` are the next pieces of the calls that the answer makes.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprobs, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request. The one that ended the answer counts as completion, cached_tokens are part of the prompt."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds: loading the model (once), call to first token, mean of each after it, call to last.

    What did not happen is None.
    """

    load_ms: float
    ttft_ms: float | None
    tpot_ms: float | None
    total_ms: float | None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `token_ids` holds every token the model chose, also the one that ended it; `text` does not.

    `reasoning` is what the model wrote before the answer in a block of its own; it counts as completion too.
    seed and variant say what to give, and with which arithmetic, to get the same answer again.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...]
    usage: Usage
    timing: Timing
    seed: int
    variant: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class StopMatcher:
    """Passes text on up to the first stop string to be completed, and holds back what may still become one."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete; `matched` is the one."""
        return self.matched is not None

    def push(self, text: str) -> str:
        """Return the text that is certain not to belong to a stop string."""
        if self.is_stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if ends:
            # the first to be complete, so that the result does not depend on where the pieces were cut
            end, minus_length, self.matched = min(ends)
            self._held = ""
            return text[: end + minus_length]
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """Return what was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string without completing it."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if stop.startswith(text[-length:])), 0)


class TextStream:
    """The chunks of one answer, read once with `for` or `async for`; leaving the loop early cancels the request.

    So do leaving a `with` block and dropping the last reference to the stream: nobody could read the rest.
    `completion` is there after the last chunk; `collect` and `acollect` read to the end and return it.
    """

    def __init__(
        self,
        tokens: TokenStream,
        detokenizer: Detokenizer,
        *,
        splitter: PartSplitter | None = None,
        tool_splitter: CallSplitter | None = None,
        stop: Iterable[str] = (),
        has_logprobs: bool = False,
        load_ms: float = 0.0,
    ) -> None:
        """Read `tokens`. Stop strings are looked for in the text alone, neither in reasoning nor in tool calls.

        `splitter` finds the one and, in the text that it leaves, `tool_splitter` the others.
        """
        self.tokens = tokens
        self._detokenizer = detokenizer
        self._splitter = splitter or _NoReasoning()
        self._tool_splitter = tool_splitter or _NoCalls()
        self._matcher = StopMatcher(stop)
        self._has_logprobs = has_logprobs
        self._load_ms = load_ms
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._tool_calls: list[ToolCallDelta] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._num_sent = 0
        self._finish_reason: FinishReason | None = None
        # the engine keeps `tokens` alive but not this object, whose end is therefore the end of its readers
        weakref.finalize(self, tokens.cancel).atexit = False

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the answer; None before its end and where anything else ended it."""
        return self._matcher.matched

    @property
    def completion(self) -> Completion | None:
        """The whole answer; None before its end."""
        if self._finish_reason is None:
            return None
        tokens = self.tokens
        return Completion(
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            finish_reason=self._finish_reason,
            logprobs=tuple(self._logprobs),
            usage=Usage(tokens.num_prompt_tokens, len(self._token_ids), tokens.cached_tokens),
            timing=Timing(self._load_ms, tokens.ttft_ms, tokens.tpot_ms, tokens.total_ms),
            seed=tokens.seed,
            variant=tokens.variant,
            reasoning="".join(self._reasonings),
            tool_calls=joined_calls(self._tool_calls),
        )

    def cancel(self) -> None:
        """Ask the engine to end the answer; the chunks before it and a last one, "cancelled", can still be read."""
        self.tokens.cancel()

    def collect(self) -> Completion:
        """Read to the end and return the whole answer; raises SubsecondError if the engine failed."""
        for _ in self:
            pass
        return cast(Completion, self.completion)

    async def acollect(self) -> Completion:
        """As `collect`, without blocking the event loop."""
        async for _ in self:
            pass
        return cast(Completion, self.completion)

    def __iter__(self) -> Generator[TextChunk, None, None]:
        """Yield chunks that have text, reasoning or calls, and a last one with the finish reason.

        Raises SubsecondError when the engine failed.
        """
        with closing(iter(self.tokens)) as events:
            for event in events:
                chunk = self._chunk_of(event)
                if chunk is not None:
                    yield chunk
                if self._finish_reason is not None:
                    return

    async def __aiter__(self) -> AsyncGenerator[TextChunk, None]:
        """As `__iter__`, without blocking the event loop."""
        async with aclosing(aiter(self.tokens)) as events:
            async for event in events:
                chunk = self._chunk_of(event)
                if chunk is not None:
                    yield chunk
                if self._finish_reason is not None:
                    return

    def _chunk_of(self, event: TokenEvent) -> TextChunk | None:
        """Take up an event; return the chunk it completes, None if its text has to wait for the next."""
        reasoning = text = ""
        calls: tuple[ToolCallDelta, ...] = ()
        if event.token_id is not None:
            self._token_ids.append(event.token_id)
            if self._has_logprobs:
                self._logprobs.append(TokenLogprobs(event.token_id, event.logprob, event.top_logprobs))
            if event.finish_reason != "stop":  # the token that ends an answer is no part of its text
                decoded = self._detokenizer.push(event.token_id)
                reasoning, text = self._splitter.push(event.token_id, decoded)
                text, calls = self._tool_splitter.push(event.token_id, text)
                text = self._matcher.push(text)
        if event.finish_reason is not None and not self._matcher.is_stopped:
            last_reasoning, last_text = self._splitter.finish(self._detokenizer.finish())
            last_text, last_calls = self._tool_splitter.finish(last_text)
            reasoning, calls = reasoning + last_reasoning, calls + last_calls
            text += self._matcher.push(last_text)
            text += self._matcher.finish()
        self._finish_reason = "stop" if self._matcher.is_stopped else event.finish_reason
        if not text and not reasoning and not calls and self._finish_reason is None:
            return None
        start, self._num_sent = self._num_sent, len(self._token_ids)
        self._texts.append(text)
        self._reasonings.append(reasoning)
        self._tool_calls += calls
        return TextChunk(
            text, tuple(self._token_ids[start:]), self._finish_reason, tuple(self._logprobs[start:]), reasoning, calls
        )
