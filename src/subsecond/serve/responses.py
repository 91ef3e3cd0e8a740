"""Routes of the responses API: answers, whole or as typed events, and what is kept of earlier ones."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from subsecond.models.prompt import Message
from subsecond.serve.answers import Answer
from subsecond.serve.client import while_connected
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import NotFoundError, public_error
from subsecond.serve.fields import refuse
from subsecond.serve.registry import Served
from subsecond.serve.responses_body import ResponseHead, response_body
from subsecond.serve.responses_events import Event, ResponseWriter
from subsecond.serve.responses_offer import name_for_model
from subsecond.serve.responses_order import response_order
from subsecond.serve.responses_store import KeptResponse, ResponseStore
from subsecond.serve.responses_types import ResponsesRequest
from subsecond.serve.routing import ApiRoute
from subsecond.serve.sse import BEGUN, EventStream, begun, event
from subsecond.serve.thinking import with_thinking


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return the routes, with a store of their own."""
    api = ResponsesApi(context, ResponseStore())
    path = "/v1/responses/{response_id}"
    return [
        ApiRoute(
            "POST",
            "/v1/responses",
            api.create,
            summary="Answer text or items, with tools, reasoning and typed events",
            request_type=ResponsesRequest,
            is_streaming=True,
        ),
        ApiRoute(
            "POST",
            "/v1/responses/input_tokens",
            api.count_tokens,
            summary="Count the tokens of what a response would be given",
            request_type=ResponsesRequest,
        ),
        ApiRoute("GET", path, api.retrieve, summary="Return a response that was kept"),
        ApiRoute("DELETE", path, api.delete, summary="Forget a response that was kept"),
    ]


class ResponsesApi:
    """The handlers of one server."""

    def __init__(self, context: ServerContext, store: ResponseStore) -> None:
        self._context = context
        self._store = store

    async def create(self, request: Request) -> Response:
        """Answer, and keep the response unless told otherwise."""
        body = await self._context.read(request, ResponsesRequest)
        tenant = self._context.tenant(request)
        head = self._head(body, tenant)
        if body.stream:
            number = self._context.request_id(request)
            return EventStream(await while_connected(request, begun(self._events(head, tenant, number))))
        return _json(await while_connected(request, self._whole(head, tenant)))

    async def count_tokens(self, request: Request) -> Response:
        """Count the tokens of the prompt that a request comes to."""
        body = await self._context.read(request, ResponsesRequest)
        head = self._head(body, self._context.tenant(request))
        async with self._context.lease(body.model) as served:
            order = head.wanted.order
            num_tokens = 0
            if order is not None:
                order = with_thinking(order, head.wanted.wish, served.model)
                num_tokens = len(await served.answering.prompt_ids(order))
        return _json(msgspec.json.encode({"object": "response.input_tokens", "input_tokens": num_tokens}))

    async def retrieve(self, request: Request) -> Response:
        """Return a response as it was given."""
        for name in request.query_params:
            refuse(name, "a kept response is returned as it was given; leave it out")
        return _json(self._kept(self._context.tenant(request), request.path_params["response_id"]).body)

    async def delete(self, request: Request) -> Response:
        """Forget a response."""
        number = request.path_params["response_id"]
        if not self._store.drop(self._context.tenant(request), number):
            raise _not_kept(number)
        return _json(msgspec.json.encode({"id": number, "object": "response", "deleted": True}))

    def _head(self, body: ResponsesRequest, tenant: str) -> ResponseHead:
        earlier: tuple[Message, ...] = ()
        if body.previous_response_id is not None:
            earlier = self._kept(tenant, body.previous_response_id).messages
        return ResponseHead(body, response_order(body, earlier), f"resp_{secrets.token_hex(16)}", time.time())

    def _kept(self, tenant: str, number: str) -> KeptResponse:
        kept = self._store.get(tenant, number)
        if kept is None:
            raise _not_kept(number)
        return kept

    async def _whole(self, head: ResponseHead, tenant: str) -> bytes:
        async with self._context.lease(head.request.model) as served:
            if head.wanted.order is None:
                return msgspec.json.encode(_nothing(head)[-1]["response"])
            async with await self._start(head, served, tenant) as answer:
                writer = _writer(head, served, answer)
                (sample,) = await answer.collect()
                writer.push_whole(sample)
                return self._keep(head, tenant, writer, response_body(head, writer, answer))

    async def _events(self, head: ResponseHead, tenant: str, request_id: str) -> AsyncGenerator[bytes, None]:
        async with self._context.lease(head.request.model) as served:
            if head.wanted.order is None:
                yield BEGUN
                yield _joined(_nothing(head))
                return
            async with await self._start(head, served, tenant) as answer:
                yield BEGUN
                writer = _writer(head, served, answer)
                yield _joined(writer.begin())
                try:
                    async with aclosing(aiter(answer)) as batches:
                        async for parts in batches:
                            if events := [each for part in parts for each in writer.push(part)]:
                                yield _joined(events)
                except Exception as error:
                    yield _joined(writer.fail(public_error(error, request_id)))
                    return
                (last,) = writer.finish()
                self._keep(head, tenant, writer, last["response"])
                yield _joined([last])

    async def _start(self, head: ResponseHead, served: Served, tenant: str) -> Answer:
        assert head.wanted.order is not None, "there is something to answer"
        order = with_thinking(head.wanted.order, head.wanted.wish, served.model)
        return await served.answering.start(order, tenant=tenant)

    def _keep(self, head: ResponseHead, tenant: str, writer: ResponseWriter, body: dict[str, Any]) -> bytes:
        """Return the body as JSON, kept for later requests unless this one says otherwise."""
        data = msgspec.json.encode(body)
        if head.request.store is not False:
            self._store.put(tenant, head.number, data, (*head.wanted.history, *_said(writer)))
        return data


def _writer(head: ResponseHead, served: Served, answer: Answer) -> ResponseWriter:
    return ResponseWriter(
        lambda writer: response_body(head, writer, answer),
        token_bytes=served.model.checkpoint.tokenizer.token_bytes,
        places=head.wanted.offered.places,
        has_logprobs=answer.order.has_logprobs,
    )


def _nothing(head: ResponseHead) -> list[Event]:
    """The events of a response to nothing, which some clients ask for to see whether a server is there."""
    writer = ResponseWriter(partial(response_body, head, answer=None), token_bytes=bytes)
    events = writer.begin()
    writer.status = "completed"
    return events + writer.finish()


def _said(writer: ResponseWriter) -> list[Message]:
    """What the model said, as the message that a later request continues from."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: list[dict[str, Any]] = []
    for item in writer.items:
        if item["type"] == "function_call":
            name = name_for_model(item["name"], item.get("namespace"))
            function = {"name": name, "arguments": item["arguments"]}
            calls.append({"id": item["call_id"], "type": "function", "function": function})
        else:
            field = "content" if item["type"] == "message" else "reasoning_content"
            message[field] = (message.get(field) or "") + "".join(part["text"] for part in item["content"])
    if calls:
        return [message | {"tool_calls": calls}]
    return [message | {"content": message["content"] or ""}]


def _not_kept(number: str) -> NotFoundError:
    return NotFoundError(
        f"no response {number[:80]!r} is kept here (any more); send the earlier items as input, and store: true to "
        "have one kept"
    )


def _joined(events: list[Event]) -> bytes:
    return b"".join(event(each, each["type"]) for each in events)


def _json(data: bytes) -> Response:
    return Response(data, media_type="application/json")
