"""Routes of the messages API: answers, whole or as events, and the number of tokens that a prompt would have."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from subsecond.serve.answers import Answer
from subsecond.serve.anthropic_events import Event, MessageWriter
from subsecond.serve.anthropic_order import left_out, messages_order, prompt_order, thinking_wish
from subsecond.serve.anthropic_types import MessagesRequest, PromptBody
from subsecond.serve.client import while_connected
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import public_error
from subsecond.serve.order import Order
from subsecond.serve.routing import ApiRoute
from subsecond.serve.sse import BEGUN, EventStream, begun, error_event, event
from subsecond.serve.thinking import ThinkingWish, with_thinking


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return the routes."""
    api = MessagesApi(context)
    return [
        ApiRoute(
            "POST",
            "/v1/messages",
            api.create,
            summary="Answer a conversation of text, calls and results in Anthropic's form",
            request_type=MessagesRequest,
            is_streaming=True,
        ),
        ApiRoute(
            "POST",
            "/v1/messages/count_tokens",
            api.count_tokens,
            summary="Count the tokens of a conversation, tools included",
            request_type=PromptBody,
        ),
    ]


class MessagesApi:
    """The handlers of one server."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def create(self, request: Request) -> Response:
        """Answer."""
        body = await self._context.read(request, MessagesRequest)
        order, wish = messages_order(body), thinking_wish(body)
        number = self._context.request_id(request)
        if body.stream:
            return EventStream(await while_connected(request, begun(self._events(request, body, order, wish))))
        data = await while_connected(request, self._whole(request, body, order, wish))
        return Response(data, media_type="application/json", headers={"request-id": number})

    async def count_tokens(self, request: Request) -> Response:
        """Count."""
        body = await self._context.read(request, PromptBody)
        order, wish = prompt_order(body), thinking_wish(body)
        async with self._context.lease(body.model) as served:
            token_ids = await served.answering.prompt_ids(with_thinking(order, wish, served.model))
        return Response(msgspec.json.encode({"input_tokens": len(token_ids)}), media_type="application/json")

    async def _whole(self, request: Request, body: MessagesRequest, order: Order, wish: ThinkingWish | None) -> bytes:
        async with self._context.lease(body.model) as served:
            order = with_thinking(order, wish, served.model)
            async with await served.answering.start(order, tenant=self._context.tenant(request)) as answer:
                (sample,) = await answer.collect()
                return msgspec.json.encode(_writer(body, answer).whole(sample))

    async def _events(
        self, request: Request, body: MessagesRequest, order: Order, wish: ThinkingWish | None
    ) -> AsyncGenerator[bytes, None]:
        async with self._context.lease(body.model) as served:
            order = with_thinking(order, wish, served.model)
            async with await served.answering.start(order, tenant=self._context.tenant(request)) as answer:
                yield BEGUN
                writer = _writer(body, answer)
                yield _joined(writer.begin())
                try:
                    async with aclosing(aiter(answer)) as batches:
                        async for parts in batches:
                            if events := [each for part in parts for each in writer.push(part)]:
                                yield _joined(events)
                except Exception as error:  # the status is sent, so that an event has to tell
                    told = public_error(error, self._context.request_id(request))
                    yield error_event(told, "anthropic", "error")
                    return
                yield _joined(writer.finish())


def _writer(body: MessagesRequest, answer: Answer) -> MessageWriter:
    shows_thinking = body.thinking is None or body.thinking.display != "omitted"
    return MessageWriter(answer, model=body.model, shows_thinking=shows_thinking, left_out=left_out(body))


def _joined(events: Iterable[Event]) -> bytes:
    return b"".join(event(each, each["type"]) for each in events)
