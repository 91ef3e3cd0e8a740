"""What the chat and completions API answer, as structs that are encoded in one pass; how they come about is elsewhere.

A field that is UNSET is not written; one that is None is written as null, which clients rely on.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from subsecond.serve.answers import AnswerUsage, EndReason

Logprobs = dict[str, Any]


class PromptTokensDetails(msgspec.Struct):
    """Of the prompt's tokens, those that were not computed as their blocks were at hand."""

    cached_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    """Of the answer's tokens, those of the reasoning before it."""

    reasoning_tokens: int
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageReply(msgspec.Struct):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class FunctionReply(msgspec.Struct):
    """Name and arguments of a call; in a stream the name comes once and the arguments in pieces."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallReply(msgspec.Struct):
    """One call. `index` is written in streams only, `id` and `type` with the first piece only."""

    function: FunctionReply
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


class MessageReply(msgspec.Struct):
    """A whole message of the assistant."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One of the answers."""

    index: int
    message: MessageReply
    finish_reason: str
    logprobs: Logprobs | None = None


class ChatReply(msgspec.Struct):
    """The answers to a conversation."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageReply
    subsecond: dict[str, Any]
    object: str = "chat.completion"
    service_tier: str | UnsetType = UNSET


class DeltaReply(msgspec.Struct):
    """What a message grows by."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """The next piece of one of the answers."""

    index: int
    delta: DeltaReply
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    """An event of a streamed conversation."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: UsageReply | UnsetType | None = UNSET
    subsecond: dict[str, Any] | UnsetType = UNSET
    object: str = "chat.completion.chunk"
    service_tier: str | UnsetType = UNSET


class TextChoice(msgspec.Struct):
    """One continuation of one prompt, or its next piece."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class TextReply(msgspec.Struct):
    """The continuations of all prompts, or an event of their stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: UsageReply | UnsetType | None = UNSET
    subsecond: dict[str, Any] | UnsetType = UNSET
    object: str = "text_completion"


def usage_reply(usages: list[AnswerUsage]) -> UsageReply:
    """Return the tokens of all answers of a request together."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return UsageReply(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(sum(usage.cached_tokens for usage in usages)),
        completion_tokens_details=CompletionTokensDetails(sum(usage.reasoning_tokens for usage in usages)),
    )


def finish_reason_of(end_reason: EndReason) -> str:
    """Return the API's word; a deadline is told in `subsecond`, as clients know no such reason."""
    return "length" if end_reason == "deadline" else end_reason


@lru_cache(maxsize=64)
def fingerprint_of(variant: str) -> str:
    """Return the short name of what decides the bits of an answer: equal ones give equal answers to equal requests."""
    return "fp_" + hashlib.sha256(variant.encode()).hexdigest()[:16]
