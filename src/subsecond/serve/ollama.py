"""Routes of Ollama's API for answers and vectors; what is told of models has a file of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from subsecond.serve import ollama_models
from subsecond.serve import ollama_types as wire
from subsecond.serve.answers import Answer
from subsecond.serve.auth import NO_TENANT
from subsecond.serve.client import StreamedResponse, while_connected
from subsecond.serve.context import ServerContext
from subsecond.serve.embeddings import check_dimensions, served_fields, token_sequences
from subsecond.serve.errors import error_body, public_error
from subsecond.serve.fields import refuse
from subsecond.serve.ollama_models import registered_name
from subsecond.serve.ollama_order import (
    chat_order,
    check_context,
    check_options,
    generate_order,
    lets_go,
    thinking_wish,
)
from subsecond.serve.ollama_replies import (
    NS_PER_MS,
    Clock,
    ReplyWriter,
    Shape,
    chat_shape,
    empty_reply,
    generate_shape,
    line_of,
)
from subsecond.serve.order import Order
from subsecond.serve.registry import Served
from subsecond.serve.routing import ApiRoute
from subsecond.serve.sse import BEGUN, begun
from subsecond.serve.thinking import ThinkingWish, with_thinking


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return all routes below /api."""
    api = OllamaApi(context)
    return [
        ApiRoute(
            "POST",
            "/api/chat",
            api.chat,
            summary="Continue a conversation in Ollama's form",
            request_type=wire.ChatRequest,
            is_streaming=True,
        ),
        ApiRoute(
            "POST",
            "/api/generate",
            api.generate,
            summary="Answer or continue a text in Ollama's form",
            request_type=wire.GenerateRequest,
            is_streaming=True,
        ),
        ApiRoute(
            "POST",
            "/api/embed",
            api.embed,
            summary="Turn texts into vectors in Ollama's form",
            request_type=wire.EmbedRequest,
        ),
        ApiRoute(
            "POST",
            "/api/embeddings",
            api.embed_one,
            summary="Turn a text into a vector in Ollama's older form",
            request_type=wire.EmbeddingsRequest,
        ),
        *ollama_models.routes(context),
    ]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request for an answer: what it says, the order it comes to (None without a prompt) and its form."""

    body: wire.AnswerBody
    order: Order | None
    wish: ThinkingWish | None
    shape: Shape
    start_s: float


class OllamaApi:
    """The handlers of one server."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def chat(self, request: Request) -> Response:
        """Continue a conversation."""
        start_s = time.perf_counter()
        body = await self._context.read(request, wire.ChatRequest)
        return await self._answer(request, _Wanted(body, chat_order(body), thinking_wish(body), chat_shape, start_s))

    async def generate(self, request: Request) -> Response:
        """Answer or continue a text."""
        start_s = time.perf_counter()
        body = await self._context.read(request, wire.GenerateRequest)
        order = generate_order(body)
        return await self._answer(request, _Wanted(body, order, thinking_wish(body), generate_shape, start_s))

    async def embed(self, request: Request) -> Response:
        """Turn texts into vectors."""
        body = await self._context.read(request, wire.EmbedRequest)
        if body.truncate:
            refuse("truncate", "nothing is cut from a text here; give false, or shorter texts")
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors, fields = await self._vectors(request, body, texts, body.dimensions, "input")
        return _json({"model": body.model, "embeddings": vectors, **fields})

    async def embed_one(self, request: Request) -> Response:
        """Turn a text into a vector."""
        body = await self._context.read(request, wire.EmbeddingsRequest)
        vectors, fields = await self._vectors(request, body, [body.prompt], None, "prompt")
        return _json({"embedding": vectors[0], "subsecond": fields["subsecond"]})

    async def _vectors(
        self, request: Request, body: wire.ModelBody, texts: list[str], dimensions: int | None, name: str
    ) -> tuple[list[list[float]], dict[str, Any]]:
        start_s = time.perf_counter()
        check_options(body.options)
        self._check_keep_alive(request, body)
        self._context.limits.check_inputs(len(texts), name=name)
        async with self._context.lease(registered_name(self._context, body.model)) as served:
            load_s = time.perf_counter() - start_s
            embedder = served.embedder
            check_dimensions(dimensions, embedder)
            check_context(body.options, embedder.checkpoint.config.context_length)
            sequences = await asyncio.to_thread(token_sequences, embedder, texts, name=name)
            vectors = await while_connected(request, served.embeddings.embed(sequences))
            total_s, num_tokens = time.perf_counter() - start_s, sum(map(len, sequences))
            served.metrics.add_texts(len(sequences), num_tokens, total_s)
            fields = {
                "total_duration": int(total_s * 1e3 * NS_PER_MS),
                "load_duration": int(load_s * 1e3 * NS_PER_MS),
                "prompt_eval_count": num_tokens,
                "subsecond": served_fields(served, total_s),
            }
            rows = await asyncio.to_thread(vectors.tolist)
        await self._let_go(body)
        return rows, fields

    async def _answer(self, request: Request, wanted: _Wanted) -> Response:
        self._check_keep_alive(request, wanted.body)
        if wanted.order is None:
            return _json(await self._loaded(wanted))
        if wanted.body.stream is not False:
            lines = await while_connected(request, begun(self._lines(request, wanted, wanted.order)))
            return StreamedResponse(lines, media_type="application/x-ndjson")
        return _json(await while_connected(request, self._whole(request, wanted, wanted.order)))

    async def _loaded(self, wanted: _Wanted) -> dict[str, Any]:
        """Load the model, or let it go, for a request without a prompt."""
        body, start_s = wanted.body, wanted.start_s
        if lets_go(body):
            await self._let_go(body)
            return empty_reply(body.model, wanted.shape("", "", []), "unload", Clock(start_s, 0.0))
        async with self._context.lease(registered_name(self._context, body.model)) as served:
            check_context(body.options, served.model.checkpoint.config.context_length)
            clock = Clock(start_s, time.perf_counter() - start_s)
            return empty_reply(body.model, wanted.shape("", "", []), "load", clock)

    async def _whole(self, request: Request, wanted: _Wanted, order: Order) -> dict[str, Any]:
        async with self._context.lease(registered_name(self._context, order.model)) as served:
            clock = Clock(wanted.start_s, time.perf_counter() - wanted.start_s)
            async with await self._start(request, wanted, order, served) as answer:
                (sample,) = await answer.collect()
                reply = _writer(wanted, served, answer, clock).whole(sample)
        await self._let_go(wanted.body)
        return reply

    async def _lines(self, request: Request, wanted: _Wanted, order: Order) -> AsyncGenerator[bytes, None]:
        async with self._context.lease(registered_name(self._context, order.model)) as served:
            clock = Clock(wanted.start_s, time.perf_counter() - wanted.start_s)
            async with await self._start(request, wanted, order, served) as answer:
                yield BEGUN
                writer = _writer(wanted, served, answer, clock)
                try:
                    async with aclosing(aiter(answer)) as batches:
                        async for parts in batches:
                            if lines := [each for part in parts for each in writer.push(part)]:
                                yield b"".join(map(line_of, lines))
                except Exception as error:  # the status is sent, so that a line has to tell
                    yield line_of(error_body(public_error(error, self._context.request_id(request)), "ollama"))
                    return
        await self._let_go(wanted.body)

    async def _start(self, request: Request, wanted: _Wanted, order: Order, served: Served) -> Answer:
        check_context(wanted.body.options, served.model.checkpoint.config.context_length)
        order = with_thinking(order, wanted.wish, served.model)
        return await served.answering.start(order, tenant=self._context.tenant(request))

    def _check_keep_alive(self, request: Request, body: wire.ModelBody) -> None:
        if lets_go(body) and self._context.tenant(request) != NO_TENANT:
            refuse("keep_alive", "0 would let the model go for everybody with a key of this server; leave it out")

    async def _let_go(self, body: wire.ModelBody) -> None:
        """Let the model go if the request says so and nobody else uses it."""
        if lets_go(body):
            await self._context.registry.let_go(registered_name(self._context, body.model))


def _writer(wanted: _Wanted, served: Served, answer: Answer, clock: Clock) -> ReplyWriter:
    has_logprobs = answer.order.has_logprobs
    return ReplyWriter(
        answer,
        model=wanted.body.model,
        shape=wanted.shape,
        clock=clock,
        token_bytes=served.model.checkpoint.tokenizer.token_bytes if has_logprobs else None,
    )


def _json(value: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
