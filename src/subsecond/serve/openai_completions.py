"""/v1/completions: texts or token ids to be continued, with the log-probabilities of the prompt where it is echoed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from subsecond.serve.answers import Answer, AnswerPart, SampleAnswer
from subsecond.serve.client import while_connected
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import public_error
from subsecond.serve.fields import refuse
from subsecond.serve.merging import merged
from subsecond.serve.openai_orders import MAX_CHOICES, check_logprob_entries, completion_orders, includes_usage
from subsecond.serve.openai_replies import (
    TextChoice,
    TextReply,
    UsageReply,
    fingerprint_of,
    finish_reason_of,
    usage_reply,
)
from subsecond.serve.openai_types import CompletionBody
from subsecond.serve.order import Order
from subsecond.serve.registry import Served
from subsecond.serve.routing import ApiRoute
from subsecond.serve.served_info import served_fields
from subsecond.serve.sse import BEGUN, DONE, EventStream, begun, error_event, event
from subsecond.serve.text_logprobs import TextLogprobs, echoed_text, joined

_encode = msgspec.json.Encoder().encode


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return the one route."""

    async def answer_completion(request: Request) -> Response:
        body = await context.read(request, CompletionBody)
        orders, has_usage = completion_orders(body), includes_usage(body)
        if body.stream:
            events = _stream(context, request, body, orders, has_usage)
            return EventStream(await while_connected(request, begun(events)))
        reply = await while_connected(request, _whole(context, request, body, orders))
        return Response(_encode(reply), media_type="application/json")

    return [
        ApiRoute(
            "POST",
            "/v1/completions",
            answer_completion,
            summary="Continue a text, or several",
            request_type=CompletionBody,
            response_type=TextReply,
            is_streaming=True,
        )
    ]


async def _start(
    context: ServerContext, request: Request, served: Served, orders: Sequence[Order], held: AsyncExitStack
) -> list[Answer]:
    """Start an answer to every prompt, all of them or none, within the bounds of the server."""
    first = orders[0]
    context_tokens = served.model.checkpoint.config.context_length
    context.limits.check_inputs(len(orders), name="prompt")
    context.limits.check_samples(first.num_samples, first.params.max_tokens, context_tokens)
    num_choices = len(orders) * first.num_samples
    limit = context.settings.max_answer_tokens
    if num_choices > MAX_CHOICES or num_choices * (first.params.max_tokens or 1) > max(limit, context_tokens):
        refuse(
            "prompt",
            f"{len(orders)} prompts with n={first.num_samples} and max_tokens={first.params.max_tokens} are too much "
            f"for one request; at most {MAX_CHOICES} answers and {limit} tokens are allowed",
        )
    if first.has_logprobs:
        num_echoed = 0 if first.params.num_prompt_logprobs is None else sum(len(order.prompt or ()) for order in orders)
        num_tokens = num_choices * (first.params.max_tokens or 1) + first.num_samples * num_echoed
        check_logprob_entries("logprobs", num_tokens, first.params.num_logprobs)
    tenant = context.tenant(request)
    return [await held.enter_async_context(await served.answering.start(order, tenant=tenant)) for order in orders]


async def _whole(context: ServerContext, request: Request, body: CompletionBody, orders: Sequence[Order]) -> TextReply:
    async with AsyncExitStack() as held:
        served = await held.enter_async_context(context.lease(body.model))
        return await _reply(served, body, await _start(context, request, served, orders, held))


async def _reply(served: Served, body: CompletionBody, answers: Sequence[Answer]) -> TextReply:
    """Return the whole reply; the engine works on all answers while they are read one after the other."""
    writer = ChoiceWriter(served, body, answers)
    whole = [await answer.collect() for answer in answers]
    choices = [
        writer.choice(number, place, sample)
        for number, samples in enumerate(whole)
        for place, sample in enumerate(samples)
    ]
    reply = writer.envelope(choices)
    reply.usage, reply.subsecond = writer.usage(), writer.served()
    return reply


async def _stream(
    context: ServerContext, request: Request, body: CompletionBody, orders: Sequence[Order], has_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield BEGUN and then the events of all answers; what fails after that is told by a last event."""
    async with AsyncExitStack() as held:
        served = await held.enter_async_context(context.lease(body.model))
        answers = await _start(context, request, served, orders, held)
        yield BEGUN
        writer = ChoiceWriter(served, body, answers)
        chunk = writer.envelope([])
        chunk.usage = None if has_usage else UNSET
        num_open = len(answers) * orders[0].num_samples
        try:
            async with aclosing(merged([aiter(answer) for answer in answers])) as batches:
                async for batch in batches:
                    pieces: list[bytes] = []
                    for number, part in ((number, part) for number, parts in batch for part in parts):
                        num_open -= part.end_reason is not None
                        chunk.choices = [writer.choice(number, part.sample, part)]
                        if num_open == 0 and not has_usage:
                            chunk.subsecond = writer.served()
                        pieces += (b"data: ", _encode(chunk), b"\n\n")
                    yield b"".join(pieces)
            if has_usage:
                chunk.choices, chunk.usage, chunk.subsecond = [], writer.usage(), writer.served()
                yield event(chunk)
            yield DONE
        except Exception as error:  # the status is sent, so that an event has to tell
            yield error_event(public_error(error, context.request_id(request)))


class ChoiceWriter:
    """Makes choices of the answers to one request, or of their parts as they come; used once."""

    def __init__(self, served: Served, body: CompletionBody, answers: Sequence[Answer]) -> None:
        self._answers = answers
        self._body = body
        self._tokenizer = served.model.checkpoint.tokenizer
        self._num_samples = answers[0].order.num_samples
        self._logprobs: dict[int, TextLogprobs] = {}

    def choice(self, number: int, sample: int, piece: AnswerPart | SampleAnswer) -> TextChoice:
        """Return the next piece of a sample of the answer with this number, behind its prompt where that is echoed."""
        answer, index = self._answers[number], number * self._num_samples + sample
        text, echoed = piece.text, None
        writer = self._logprobs.get(index)
        if writer is None:
            writer = self._logprobs[index] = TextLogprobs(self._tokenizer)
            if self._body.echo and (prompt := answer.order.prompt) is not None:
                text = echoed_text(prompt, self._tokenizer) + text
                if self._body.logprobs is not None:
                    echoed = writer.prompt(prompt, answer.prompt_ids, answer.prompt_logprobs)
        lists = None if self._body.logprobs is None else writer.answer(piece.logprobs)
        if echoed is not None and lists is not None:
            lists = joined(echoed, lists)
        reason = None if piece.end_reason is None else finish_reason_of(piece.end_reason)
        return TextChoice(index, text, lists, reason)

    def envelope(self, choices: list[TextChoice]) -> TextReply:
        """Return what stands around choices."""
        first = self._answers[0]
        fingerprint = fingerprint_of(first.served.variant)
        return TextReply(f"cmpl-{first.id}", int(time.time()), self._body.model, fingerprint, choices)

    def usage(self) -> UsageReply:
        """Return the tokens of all answers."""
        return usage_reply([answer.usage for answer in self._answers])

    def served(self) -> dict[str, Any]:
        """Return how the answers were served; the times and the seed are those of the first prompt."""
        fields = served_fields(self._answers[0].served)
        fields["num_prompt_tokens"] = sum(answer.served.num_prompt_tokens for answer in self._answers)
        fields["cached_tokens"] = sum(answer.served.cached_tokens for answer in self._answers)
        fields["is_deadline_passed"] = any(answer.served.is_deadline_passed for answer in self._answers)
        return fields
