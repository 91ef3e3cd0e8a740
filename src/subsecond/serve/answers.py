"""From an order to its answers, part by part as they come; every wire format reads these and knows no engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple

from subsecond.engine.request import PromptLogprobs
from subsecond.engine.text import TokenLogprobs
from subsecond.models.tools import ToolCall, ToolCallDelta
from subsecond.serve.order import Order
from subsecond.serve.served_model import ServedModel

EndReason = Literal["stop", "length", "tool_calls", "deadline", "cancelled"]


class AnswerPart(NamedTuple):
    """The next piece of one sample; text, reasoning and calls in one part came in the order reasoning, text, calls.

    token_ids    the tokens read since the sample's part before, the one that ended the answer included
    logprobs     of those tokens, where the order asked for them
    end_reason   None until the sample's last part
    stop         with end_reason "stop": the stop string that ended the answer; None where the model ended it
    """

    sample: int
    text: str
    reasoning: str
    tool_calls: tuple[ToolCallDelta, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    end_reason: EndReason | None = None
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """One whole answer. The fields are those of its parts, put together."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    end_reason: EndReason
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerUsage:
    """Tokens of an answer. Those of all samples together count as completion, the prompt counts once.

    cached_tokens are part of the prompt, reasoning_tokens of the completion.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class ServedInfo:
    """How an answer was served. Milliseconds that did not happen are None.

    artifact      the file or folder that was loaded; variant: what decides the bits of an answer
    kernels       the instruction set in use
    queue_ms      from the start of the order to the engine beginning with it; prefill_ms: from then to the first
                  token; decode_ms: from then to the last token of the last sample
    seed          with which the same order gives the same answer
    end_reason    "deadline" where a sample was ended by it, which wire formats call length
    """

    artifact: str
    variant: str
    kernels: str
    queue_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None
    num_prompt_tokens: int
    cached_tokens: int
    seed: int
    is_deadline_passed: bool


class Answer:
    """All samples of one order. To be closed, best by `async with`; closing cancels what is live."""

    id: str
    prompt_ids: tuple[int, ...]

    @property
    def usage(self) -> AnswerUsage:
        """Tokens so far."""
        raise NotImplementedError

    @property
    def served(self) -> ServedInfo:
        """How the order is served, as far as it is known now."""
        raise NotImplementedError

    @property
    def prompt_logprobs(self) -> list[PromptLogprobs]:
        """Of the prompt's tokens from the second on; empty unless asked for, complete with the first part."""
        raise NotImplementedError

    def __aiter__(self) -> AsyncGenerator[tuple[AnswerPart, ...], None]:
        """Yield the parts that are ready, of any samples, as often as there are any: about once a step of the engine.

        Raises SubsecondError when the engine failed.
        """
        raise NotImplementedError

    async def collect(self) -> tuple[SampleAnswer, ...]:
        """Read to the end and return every sample's whole answer, in the order of their numbers."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Cancel what is live; may be called again."""
        raise NotImplementedError

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class Answering:
    """Starts orders on one loaded model.

    What takes long on the processor (templates, tokenizers, grammars) runs in a small pool of threads, never on the
    event loop.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    async def start(self, order: Order, *, tenant: str = "") -> Answer:
        """Submit all samples of an order and return their answer at once.

        `tenant` keeps cached blocks of one key's prompts from serving another's.

        Raises:
            ContextLengthError: prompt and answer do not fit.
            OverloadedError: the deadline cannot be met.
            InputError, UnsupportedError: something in the order is not acceptable.
        """
        raise NotImplementedError

    async def prompt_ids(self, order: Order) -> tuple[int, ...]:
        """Return the token ids of an order's prompt, tools included, as `start` would submit them."""
        raise NotImplementedError

    def close(self) -> None:
        """End the pool of threads; the model is left open."""
