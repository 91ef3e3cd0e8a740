"""/tokenize and /detokenize: what a prompt comes to as token ids, and back."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from subsecond.models.prompt_encoder import MAX_CHARS_PER_TOKEN
from subsecond.models.tokenizer import Tokenizer
from subsecond.serve.context import ServerContext
from subsecond.serve.errors import FieldError
from subsecond.serve.openai_orders import chat_order
from subsecond.serve.openai_types import AnyMessage, ChatBody, ToolDefinition
from subsecond.serve.registry import Served
from subsecond.serve.routing import ApiRoute

MAX_IDS = 2**20


class TokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A prompt, or messages as the chat API takes them; exactly one of both.

    model               may be left out where there is one model
    add_special_tokens  of a prompt: with what the model has around a text; messages have it from their template
    return_token_strs   tell the text of each token too
    """

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    messages: list[AnyMessage] | None = None
    tools: list[ToolDefinition] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeReply(msgspec.Struct):
    """Token ids; in `token_strs` bytes that are no whole character are U+FFFD."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Token ids."""

    tokens: list[int]
    model: str | None = None


class DetokenizeReply(msgspec.Struct):
    """Their text, control tokens included."""

    prompt: str


def routes(context: ServerContext) -> list[ApiRoute]:
    """Return both routes."""

    async def tokenize(request: Request) -> Response:
        body = await context.read(request, TokenizeBody)
        _check(body)
        name = _model_name(context, body.model)
        async with context.lease(name) as served:
            if body.messages is not None:
                tokens = await _message_ids(served, name, body)
            else:
                tokens = await asyncio.to_thread(_prompt_ids, served, body)
            checkpoint = served.part.checkpoint
            strings = None
            if body.return_token_strs:
                strings = await asyncio.to_thread(_token_texts, checkpoint.tokenizer, tokens)
            return _json(TokenizeReply(len(tokens), checkpoint.config.context_length, tokens, strings))

    async def detokenize(request: Request) -> Response:
        body = await context.read(request, DetokenizeBody)
        if len(body.tokens) > MAX_IDS:
            raise FieldError(f"tokens has {len(body.tokens)} ids; give at most {MAX_IDS}", param="tokens")
        async with context.lease(_model_name(context, body.model)) as served:
            tokenizer = served.part.checkpoint.tokenizer
            for place, token_id in enumerate(body.tokens):
                if not 0 <= token_id < tokenizer.vocab_size:
                    raise FieldError(
                        f"tokens[{place}]={str(token_id)[:30]} is not allowed; give 0 to {tokenizer.vocab_size - 1}",
                        param=f"tokens[{place}]",
                    )
            text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special=False)
            return _json(DetokenizeReply(text))

    return [
        ApiRoute(
            "POST",
            "/tokenize",
            tokenize,
            summary="Turn a prompt into token ids",
            request_type=TokenizeBody,
            response_type=TokenizeReply,
        ),
        ApiRoute(
            "POST",
            "/detokenize",
            detokenize,
            summary="Turn token ids into text",
            request_type=DetokenizeBody,
            response_type=DetokenizeReply,
        ),
    ]


def _check(body: TokenizeBody) -> None:
    if (body.prompt is None) == (body.messages is None):
        raise FieldError("give either prompt or messages", param="prompt")
    if body.messages is not None:
        if body.add_special_tokens:
            raise FieldError("add_special_tokens: messages have theirs from the template", param="add_special_tokens")
        return
    for name in ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
        if getattr(body, name) is not None:
            raise FieldError(f"{name} belongs to messages; leave it out with a prompt", param=name)


def _model_name(context: ServerContext, given: str | None) -> str:
    names = context.registry.names
    if given is None and len(names) > 1:
        raise FieldError(f"model is missing; there are {', '.join(names[:50])}", param="model")
    return names[0] if given is None else given


async def _message_ids(served: Served, name: str, body: TokenizeBody) -> list[int]:
    order = chat_order(
        ChatBody(
            model=name,
            messages=body.messages or [],
            tools=body.tools,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            chat_template_kwargs=body.chat_template_kwargs,
        )
    )
    return list(await served.answering.prompt_ids(order))


def _prompt_ids(served: Served, body: TokenizeBody) -> list[int]:
    assert body.prompt is not None
    checkpoint = served.part.checkpoint
    tokenizer, limit = checkpoint.tokenizer, checkpoint.config.context_length
    if len(body.prompt) > limit * MAX_CHARS_PER_TOKEN:
        raise FieldError(
            f"prompt has {len(body.prompt)} characters, far more than fit into the context length of {limit} tokens",
            param="prompt",
        )
    is_whole = body.add_special_tokens is not False
    if served.loaded.model is None:
        return tokenizer.encode_text(body.prompt) if is_whole else tokenizer.encode(body.prompt)
    if is_whole:
        return list(served.model.prompts.encode(body.prompt, raw=True))
    return tokenizer.encode(body.prompt, allow_special=True)


def _token_texts(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    return [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in token_ids]


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
