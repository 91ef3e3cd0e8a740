"""From an order to its answers, part by part as they come; every wire format reads these and knows no engine."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import Literal, NamedTuple, Protocol

from subsecond.core.errors import OverloadedError, UnsupportedError
from subsecond.engine.constraint import ConstraintMaker
from subsecond.engine.grammar.call_format import call_format
from subsecond.engine.grammar.compiler import GrammarCompiler
from subsecond.engine.local import NUM_SEED_BITS
from subsecond.engine.request import PromptLogprobs, Request
from subsecond.engine.stream import TokenStream
from subsecond.engine.text import TextChunk, TextStream, TokenLogprobs
from subsecond.models.detokenizer import StreamingDetokenizer
from subsecond.models.prompt import Message
from subsecond.models.reasoning import MAX_TAIL_TOKENS, ReasoningSplitter
from subsecond.models.tool_calls import FREE_CHOICE, ToolCall, ToolCallDelta, check_tools, joined_calls
from subsecond.models.tool_splitter import ToolCallSplitter
from subsecond.serve.errors import UnavailableError
from subsecond.serve.merging import merged
from subsecond.serve.order import Order
from subsecond.serve.served_model import ServedEmbedder, ServedModel

EndReason = Literal["stop", "length", "tool_calls", "deadline"]
NUM_PREPARING_THREADS = 2


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

    artifact            the file or folder that was loaded
    variant             what decides the bits of an answer; kernels: the instruction set in use
    queue_ms            from the start of the order to the engine beginning with it
    prefill_ms          from then to the first token; decode_ms: from then to the last token of the last sample
    seed                with which the same order gives the same answer
    is_deadline_passed  whether a sample was ended by the deadline, which most wire formats call length
    unenforced          places of a schema that the answer was not held to
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
    unenforced: tuple[str, ...] = ()


class AnswerMeter(Protocol):
    """What counts and times answers."""

    def add_tokens(self, num_tokens: int, gap_s: float) -> None:
        """Note tokens of one sample that arrived together, `gap_s` after the ones before them."""

    def add_answer(self, streams: tuple[TokenStream, ...], end_reasons: tuple[str, ...]) -> None:
        """Note an order that has ended: the streams of its samples and why each ended."""


class _NoMeter:
    """Counts nothing."""

    def add_tokens(self, num_tokens: int, gap_s: float) -> None:
        pass

    def add_answer(self, streams: tuple[TokenStream, ...], end_reasons: tuple[str, ...]) -> None:
        pass


class _Sample:
    """One sample's text on its way from the engine, with what only its end tells."""

    def __init__(self, number: int, stream: TextStream, meter: AnswerMeter) -> None:
        self.number = number
        self.stream = stream
        self.num_tokens = self.num_reasoning_tokens = 0
        self.end_reason: EndReason | None = None
        self._meter = meter
        self._has_calls = False
        self._last_part_s: float | None = None

    def part_of(self, chunk: TextChunk) -> AnswerPart:
        """Take up the next chunk of the stream."""
        text, token_ids, finish_reason, logprobs, reasoning, calls = chunk
        stop, now_s = None, time.perf_counter()
        if self._last_part_s is not None:
            self._meter.add_tokens(len(token_ids), now_s - self._last_part_s)
        self._last_part_s = now_s
        self.num_tokens += len(token_ids)
        if reasoning and not text:
            self.num_reasoning_tokens += len(token_ids)
        if calls:
            self._has_calls = True
        if finish_reason is not None:
            if finish_reason == "cancelled":  # by nobody here, as then nobody would read it
                raise UnavailableError(
                    "the model is being let go, so its answer ended early; ask again",
                    code="model_closed",
                    retry_after_s=1.0,
                )
            assert finish_reason != "error", "a failed engine raises"
            self.end_reason = "tool_calls" if self._has_calls and finish_reason == "stop" else finish_reason
            stop = self.stream.matched_stop if finish_reason == "stop" else None
        return AnswerPart(self.number, text, reasoning, calls, token_ids, logprobs, self.end_reason, stop)


class Prepared(NamedTuple):
    """What an order comes to before it is submitted; `unenforced` are places of a schema that cannot be enforced."""

    prompt_ids: tuple[int, ...]
    constraint: ConstraintMaker | None = None
    unenforced: tuple[str, ...] = ()


class Answer:
    """All samples of one order, to be read once. To be closed, best by `async with`; closing cancels what is live."""

    def __init__(
        self,
        order: Order,
        order_id: str,
        model: ServedModel,
        prepared: Prepared,
        samples: Sequence[_Sample],
        meter: AnswerMeter,
    ) -> None:
        """Read the streams of `samples`, which are submitted already."""
        self.order = order
        self.id = order_id
        self.prompt_ids = prepared.prompt_ids
        self._unenforced = prepared.unenforced
        self._model = model
        self._samples = tuple(samples)
        self._meter = meter
        self._is_closed = False

    @property
    def usage(self) -> AnswerUsage:
        """Tokens so far."""
        return AnswerUsage(
            prompt_tokens=len(self.prompt_ids),
            # those that were read, not those that the engine made until it heard of a stop string
            completion_tokens=sum(sample.num_tokens for sample in self._samples),
            # the first sample computes the prompt for all
            cached_tokens=self._samples[0].stream.tokens.cached_tokens,
            reasoning_tokens=sum(sample.num_reasoning_tokens for sample in self._samples),
        )

    @property
    def served(self) -> ServedInfo:
        """How the order is served, as far as it is known now."""
        first = self._samples[0].stream.tokens
        decode_ms = [sample.stream.tokens.decode_ms for sample in self._samples]
        return ServedInfo(
            artifact=artifact_name(self._model),
            variant=first.variant,
            kernels=kernels_name(self._model),
            queue_ms=first.queue_ms,
            prefill_ms=first.prefill_ms,
            decode_ms=max((ms for ms in decode_ms if ms is not None), default=None),
            num_prompt_tokens=len(self.prompt_ids),
            cached_tokens=self.usage.cached_tokens,
            seed=first.seed,
            is_deadline_passed=any(sample.end_reason == "deadline" for sample in self._samples),
            unenforced=self._unenforced,
        )

    @property
    def prompt_logprobs(self) -> list[PromptLogprobs]:
        """Of the prompt's tokens from the second on; empty unless asked for, complete with the first part."""
        return self._samples[0].stream.tokens.prompt_logprobs

    async def __aiter__(self) -> AsyncGenerator[tuple[AnswerPart, ...], None]:
        """Yield the parts that are ready, of any samples, as often as there are any: about once a step of the engine.

        Raises SubsecondError when the engine failed.
        """
        if len(self._samples) == 1:
            sample = self._samples[0]
            async with aclosing(aiter(sample.stream)) as chunks:
                async for chunk in chunks:
                    yield (sample.part_of(chunk),)
            return
        async with aclosing(merged([aiter(sample.stream) for sample in self._samples])) as batches:
            async for batch in batches:
                yield tuple(self._samples[number].part_of(chunk) for number, chunk in batch)

    async def collect(self) -> tuple[SampleAnswer, ...]:
        """Read to the end and return every sample's whole answer, in the order of their numbers."""
        parts: list[list[AnswerPart]] = [[] for _ in self._samples]
        async for batch in self:
            for part in batch:
                parts[part.sample].append(part)
        return tuple(map(_whole, parts))

    async def aclose(self) -> None:
        """Cancel what is live; may be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        for sample in self._samples:
            sample.stream.cancel()
        streams = tuple(sample.stream.tokens for sample in self._samples)
        self._meter.add_answer(streams, tuple(sample.end_reason or "cancelled" for sample in self._samples))

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _whole(parts: Sequence[AnswerPart]) -> SampleAnswer:
    end_reason = parts[-1].end_reason
    assert end_reason is not None, "a sample's last part has an end reason"
    return SampleAnswer(
        text="".join(part.text for part in parts),
        reasoning="".join(part.reasoning for part in parts),
        tool_calls=joined_calls(delta for part in parts for delta in part.tool_calls),
        token_ids=tuple(token_id for part in parts for token_id in part.token_ids),
        logprobs=tuple(entry for part in parts for entry in part.logprobs),
        end_reason=end_reason,
        stop=parts[-1].stop,
    )


def artifact_name(model: ServedModel | ServedEmbedder) -> str:
    """The name of what was loaded: the folder of packed weights, or the model's own file."""
    checkpoint = model.checkpoint
    return checkpoint.path.name if checkpoint.artifact is None else f"{checkpoint.path.name} (packed)"


def kernels_name(model: ServedModel | ServedEmbedder) -> str:
    """The instruction set in use, or the kind of backend where it has no choice of one."""
    return str(getattr(model.backend, "isa", type(model.backend).__name__))


class Answering:
    """Starts orders on one loaded model.

    What takes long on the processor (templates, tokenizers, grammars) runs in a small pool of threads, never on the
    event loop.
    """

    def __init__(self, model: ServedModel, *, meter: AnswerMeter | None = None) -> None:
        self._model = model
        self._meter = meter or _NoMeter()
        self._pool = ThreadPoolExecutor(NUM_PREPARING_THREADS, "subsecond-prompts")

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self._model.checkpoint.tokenizer)

    async def start(self, order: Order, *, tenant: str = "") -> Answer:
        """Submit all samples of an order and return their answer at once.

        `tenant` keeps cached blocks of one key's prompts from serving another's.

        Raises:
            ContextLengthError: prompt and answer do not fit.
            OverloadedError: the deadline cannot be met.
            InputError, UnsupportedError: something in the order is not acceptable.
        """
        start_s = time.perf_counter()
        if order.output is None and isinstance(order.prompt, tuple):
            prepared = Prepared(order.prompt)
        else:
            prepared = await asyncio.get_running_loop().run_in_executor(self._pool, self._prepare, order)
        params = order.params
        if order.num_samples > 1 and params.seed is None:
            params = replace(params, seed=secrets.randbits(NUM_SEED_BITS))
        order_id = secrets.token_hex(12)
        samples: list[_Sample] = []
        try:
            for number in range(order.num_samples):
                request = Request(
                    prompt_ids=prepared.prompt_ids,
                    params=params,
                    id=f"{order_id}-{number}",
                    eos_ids=self._model.checkpoint.tokenizer.eos_ids,
                    salt=tenant,
                    priority=order.priority,
                    deadline_ms=_time_left_ms(order, start_s),
                    sample_index=number,
                    group=order_id if order.num_samples > 1 else None,
                    constraint=prepared.constraint,
                )
                samples.append(self._submit(order, request, number, start_s))
        except BaseException:
            for sample in samples:
                sample.stream.cancel()
            raise
        return Answer(order, order_id, self._model, prepared, samples, self._meter)

    async def prompt_ids(self, order: Order) -> tuple[int, ...]:
        """Return the token ids of an order's prompt, tools included, as `start` would submit them."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode, order)

    def close(self) -> None:
        """End the pool of threads; the model is left open."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, order: Order, request: Request, number: int, start_s: float) -> _Sample:
        model, tokenizer = self._model, self._model.checkpoint.tokenizer
        tokens = model.engine.submit(request)
        tokens.start_s = start_s  # the template and the tokenizer are part of what the client waits for
        is_chat, choice = order.messages is not None, order.tool_choice or FREE_CHOICE
        syntax = model.prompts.tool_syntax if order.tools and choice.mode != "none" else None
        names = [tool.name for tool in order.tools]
        stream = TextStream(
            tokens,
            StreamingDetokenizer(tokenizer),
            splitter=ReasoningSplitter(model.prompts.markers, tokenizer, request.prompt_ids) if is_chat else None,
            tool_splitter=ToolCallSplitter(syntax, tokenizer, names) if syntax is not None else None,
            stop=request.params.stop,
            has_logprobs=order.has_logprobs,
        )
        return _Sample(number, stream, self._meter)

    def _prepare(self, order: Order) -> Prepared:
        prompt_ids = self._encode(order)
        output, prompts = order.output, self._model.prompts
        markers = prompts.markers if order.messages is not None else None
        if order.tools:
            choice = order.tool_choice or FREE_CHOICE
            syntax = prompts.tool_syntax
            assert syntax is not None, "the prompt of tools needs a syntax too"
            tokenizer = self._model.checkpoint.tokenizer
            output = call_format(
                syntax, tokenizer, order.tools, choice, is_parallel=order.is_parallel, output=order.output
            )
        if output is None:
            return Prepared(prompt_ids)
        compiled = self._grammars.compile(output, markers=markers, prompt_ids=prompt_ids)
        return Prepared(prompt_ids, compiled, compiled.unenforced)

    def _encode(self, order: Order) -> tuple[int, ...]:
        prompts = self._model.prompts
        if order.messages is None:
            assert order.prompt is not None, "an order has messages or a prompt"
            return tuple(prompts.encode(order.prompt, raw=True)) if isinstance(order.prompt, str) else order.prompt
        choice = order.tool_choice or FREE_CHOICE
        if order.tools:
            check_tools(order.tools, choice)
            if prompts.tool_syntax is None:
                raise UnsupportedError("this model has no chat template, so it cannot be told of tools; leave them out")
        prompt_ids = prompts.encode(
            order.messages[:-1] if order.is_continuation else order.messages,
            enable_thinking=order.enable_thinking,
            template_kwargs=order.template_kwargs,
            tools=order.tools,
            tool_choice=choice,
        )
        if order.is_continuation:
            prompt_ids = prompt_ids + self._begun_answer(order.messages[-1], prompt_ids)
        return tuple(prompt_ids)

    def _begun_answer(self, message: Message, prompt_ids: Sequence[int]) -> list[int]:
        """Return the tokens of an answer to be continued, which stand where the model would begin its own."""
        if message.get("role") != "assistant" or message.get("tool_calls") or message.get("reasoning_content"):
            raise UnsupportedError("only a text of the assistant can be continued, without calls and reasoning")
        content = message["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        tokenizer, markers = self._model.checkpoint.tokenizer, self._model.prompts.markers
        end = tokenizer.decode(prompt_ids[-MAX_TAIL_TOKENS:], skip_special=False).rstrip()
        if markers is not None and end.endswith(markers.opening):
            raise UnsupportedError("this model begins every answer with its reasoning, so none can be continued")
        return tokenizer.encode(text, is_continuation=True)


def _time_left_ms(order: Order, start_s: float) -> float | None:
    """Milliseconds to the order's deadline; OverloadedError when the preparation of the prompt has used them up."""
    if order.deadline_ms is None:
        return None
    left_ms = order.deadline_ms - (time.perf_counter() - start_s) * 1e3
    if left_ms <= 0:
        raise OverloadedError(
            f"deadline_ms={order.deadline_ms:g} passed while the prompt was prepared; give more", retry_after_s=1.0
        )
    return left_ms
