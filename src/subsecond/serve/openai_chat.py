"""/v1/chat/completions: bodies to orders, answers to replies and streams."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from subsecond.engine.text import TokenLogprobs
from subsecond.models.tool_calls import ToolCall, ToolCallDelta
from subsecond.serve.answers import Answer, AnswerPart, EndReason, SampleAnswer
from subsecond.serve.client import while_connected
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import public_error
from subsecond.serve.logprob_entries import TokenBytes, logprob_entries
from subsecond.serve.openai_orders import chat_order, check_logprob_entries, includes_usage, thinking_wish
from subsecond.serve.openai_replies import (
    ChatChoice,
    ChatChunk,
    ChatReply,
    ChunkChoice,
    DeltaReply,
    FunctionReply,
    Logprobs,
    MessageReply,
    ToolCallReply,
    fingerprint_of,
    finish_reason_of,
    usage_reply,
)
from subsecond.serve.openai_types import ChatBody
from subsecond.serve.order import Order
from subsecond.serve.registry import Served
from subsecond.serve.routing import ApiRoute
from subsecond.serve.served_info import served_fields
from subsecond.serve.sse import BEGUN, DONE, EventStream, begun, error_event
from subsecond.serve.thinking import with_thinking

_encode = msgspec.json.Encoder().encode


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return the one route."""

    async def answer_chat(request: Request) -> Response:
        body = await context.read(request, ChatBody)
        order, has_usage = chat_order(body), includes_usage(body)
        if body.stream:
            events = _stream(context, request, body, order, has_usage)
            return EventStream(await while_connected(request, begun(events)))
        reply = await while_connected(request, _whole(context, request, body, order))
        return Response(_encode(reply), media_type="application/json")

    return [
        ApiRoute(
            "POST",
            "/v1/chat/completions",
            answer_chat,
            summary="Continue a conversation",
            request_type=ChatBody,
            response_type=ChatReply,
            is_streaming=True,
        )
    ]


def _fitted(context: ServerContext, served: Served, body: ChatBody, order: Order) -> Order:
    """Return the order as this model can take it, within the bounds of the server."""
    context_tokens = served.model.checkpoint.config.context_length
    context.limits.check_samples(order.num_samples, order.params.max_tokens, context_tokens)
    if order.has_logprobs:
        num_tokens = order.num_samples * (order.params.max_tokens or context_tokens)
        check_logprob_entries("top_logprobs", num_tokens, order.params.num_logprobs)
    return with_thinking(order, thinking_wish(body), served.model)


async def _whole(context: ServerContext, request: Request, body: ChatBody, order: Order) -> ChatReply:
    async with context.lease(body.model) as served:
        order = _fitted(context, served, body, order)
        async with await served.answering.start(order, tenant=context.tenant(request)) as answer:
            return _reply(served, body, answer, await answer.collect())


def _reply(served: Served, body: ChatBody, answer: Answer, samples: Sequence[SampleAnswer]) -> ChatReply:
    info, token_bytes = answer.served, served.model.checkpoint.tokenizer.token_bytes
    return ChatReply(
        id=f"chatcmpl-{answer.id}",
        created=int(time.time()),
        model=body.model,
        system_fingerprint=fingerprint_of(info.variant),
        choices=[_choice(number, sample, bool(body.logprobs), token_bytes) for number, sample in enumerate(samples)],
        usage=usage_reply([answer.usage]),
        subsecond=served_fields(info),
        service_tier=UNSET if body.service_tier is None else "default",
    )


def _choice(number: int, sample: SampleAnswer, has_logprobs: bool, token_bytes: TokenBytes) -> ChatChoice:
    calls = [_whole_call(call) for call in sample.tool_calls]
    message = MessageReply(
        content=sample.text if sample.text or not calls else None,
        reasoning_content=sample.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )
    entries = content_logprobs(sample.logprobs, sample.end_reason, sample.stop)
    return ChatChoice(
        index=number,
        message=message,
        finish_reason=finish_reason_of(sample.end_reason),
        logprobs=_logprobs(entries, token_bytes) if has_logprobs else None,
    )


def _whole_call(call: ToolCall) -> ToolCallReply:
    return ToolCallReply(id=new_call_id(), type="function", function=FunctionReply(call.arguments, call.name))


def new_call_id() -> str:
    """Return the id of a call, by which the message of its result names it."""
    return f"call_{secrets.token_hex(12)}"


def content_logprobs(
    logprobs: Sequence[TokenLogprobs], end_reason: EndReason | None, stop: str | None
) -> Sequence[TokenLogprobs]:
    """Return those of tokens of the content: without the one by which the model ended its answer."""
    return logprobs[:-1] if end_reason in ("stop", "tool_calls") and stop is None else logprobs


def _logprobs(entries: Iterable[TokenLogprobs], token_bytes: TokenBytes) -> Logprobs:
    return {"content": logprob_entries(entries, token_bytes), "refusal": None}


async def _stream(
    context: ServerContext, request: Request, body: ChatBody, order: Order, has_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield BEGUN and then the events of an answer; what fails after that is told by a last event."""
    async with context.lease(body.model) as served:
        order = _fitted(context, served, body, order)
        async with await served.answering.start(order, tenant=context.tenant(request)) as answer:
            yield BEGUN
            writer = ChunkWriter(
                answer,
                model=body.model,
                token_bytes=served.model.checkpoint.tokenizer.token_bytes if body.logprobs else None,
                has_usage=has_usage,
                has_service_tier=body.service_tier is not None,
            )
            try:
                async with aclosing(aiter(answer)) as batches:
                    async for parts in batches:
                        yield writer.push(parts)
                yield writer.finish()
            except Exception as error:  # the status is sent, so that an event has to tell
                yield error_event(public_error(error, context.request_id(request)))


class ChunkWriter:
    """Writes the parts of one answer as the chunks of a stream; used once."""

    def __init__(
        self,
        answer: Answer,
        *,
        model: str,
        token_bytes: TokenBytes | None = None,
        has_usage: bool = False,
        has_service_tier: bool = False,
    ) -> None:
        self._answer = answer
        self._token_bytes = token_bytes
        self._has_usage = has_usage
        self._chunk = ChatChunk(
            id=f"chatcmpl-{answer.id}",
            created=int(time.time()),
            model=model,
            system_fingerprint=fingerprint_of(answer.served.variant),
            choices=[],
            usage=None if has_usage else UNSET,
            service_tier="default" if has_service_tier else UNSET,
        )
        self._num_open = answer.order.num_samples
        self._begun: set[int] = set()

    def push(self, parts: Iterable[AnswerPart]) -> bytes:
        """Return the chunks of parts that came together."""
        pieces: list[bytes] = []
        for part in parts:
            if part.sample not in self._begun:
                self._begun.add(part.sample)
                self._write(pieces, ChunkChoice(part.sample, DeltaReply(role="assistant", content="", refusal=None)))
            logprobs = None
            if self._token_bytes is not None:
                logprobs = _logprobs(content_logprobs(part.logprobs, part.end_reason, part.stop), self._token_bytes)
            if part.reasoning:
                self._write(pieces, ChunkChoice(part.sample, DeltaReply(reasoning_content=part.reasoning)))
            if part.text or (logprobs is not None and logprobs["content"]):
                self._write(pieces, ChunkChoice(part.sample, DeltaReply(content=part.text), logprobs))
            for delta in part.tool_calls:
                self._write(pieces, ChunkChoice(part.sample, DeltaReply(tool_calls=[_call_delta(delta)])))
            if part.end_reason is not None:
                self._num_open -= 1
                if self._num_open == 0 and not self._has_usage:
                    self._chunk.subsecond = served_fields(self._answer.served)
                reason = finish_reason_of(part.end_reason)
                self._write(pieces, ChunkChoice(part.sample, DeltaReply(), finish_reason=reason))
        return b"".join(pieces)

    def finish(self) -> bytes:
        """Return what stands behind the last chunk of the answers."""
        pieces: list[bytes] = []
        if self._has_usage:
            self._chunk.usage = usage_reply([self._answer.usage])
            self._chunk.subsecond = served_fields(self._answer.served)
            self._write(pieces)
        pieces.append(DONE)
        return b"".join(pieces)

    def _write(self, pieces: list[bytes], choice: ChunkChoice | None = None) -> None:
        self._chunk.choices = [] if choice is None else [choice]
        pieces += (b"data: ", _encode(self._chunk), b"\n\n")


def _call_delta(delta: ToolCallDelta) -> ToolCallReply:
    if delta.name is None:
        return ToolCallReply(FunctionReply(delta.arguments), index=delta.index)
    function = FunctionReply(delta.arguments, delta.name)
    return ToolCallReply(function, id=new_call_id(), type="function", index=delta.index)
