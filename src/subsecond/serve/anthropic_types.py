"""Bodies of the messages API as it is spoken on the wire, decoded strictly; what they mean is decided elsewhere.

A field that stands here is honoured, refused by name or harmless; any other is refused when the body is decoded.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from subsecond.serve.fields import Body

CacheControl = dict[str, Any] | None
"""Where a prompt may be cached; the prefix cache needs no telling, so it is harmless everywhere."""


class TextBlock(Body, tag="text", tag_field="type"):
    """Text; citations of an earlier answer are harmless."""

    text: str
    cache_control: CacheControl = None
    citations: list[Any] | None = None


class ThinkingBlock(Body, tag="thinking", tag_field="type"):
    """Reasoning of an earlier answer; nothing here checks its signature."""

    thinking: str
    signature: str = ""
    cache_control: CacheControl = None


class RedactedThinkingBlock(Body, tag="redacted_thinking", tag_field="type"):
    """Reasoning that only the vendor who encrypted it can read, which is left out."""

    data: str
    cache_control: CacheControl = None


class ToolUseBlock(Body, tag="tool_use", tag_field="type"):
    """A call that an earlier answer made."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl = None
    caller: dict[str, Any] | None = None
    toolset_name: str | None = None


class ImageBlock(msgspec.Struct, tag="image", tag_field="type"):
    """A picture; declared to be refused by name, whatever else it says."""


class DocumentBlock(msgspec.Struct, tag="document", tag_field="type"):
    """A document; declared to be refused by name, whatever else it says."""


class SearchResultBlock(msgspec.Struct, tag="search_result", tag_field="type"):
    """A search result; declared to be refused by name, whatever else it says."""


ResultPart = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock


class ToolResultBlock(Body, tag="tool_result", tag_field="type"):
    """What came of a call."""

    tool_use_id: str
    content: str | list[ResultPart] | None = None
    is_error: bool | None = None
    cache_control: CacheControl = None
    toolset_name: str | None = None


Block = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
)


class MessageBody(Body):
    """What one side said."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolBody(Body):
    """A function that the model may call."""

    name: str
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    input_examples: list[dict[str, Any]] | None = None


class ToolChoiceBody(Body):
    """Whether the model calls tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(Body):
    """Whether the model reasons before it answers."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormatBody(Body):
    """What the answer is held to."""

    type: Literal["json_schema"]
    schema: msgspec.Raw


class OutputConfig(Body):
    """How the answer shall be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormatBody | None = None


class PromptBody(Body):
    """What a prompt is made of, which is all that counting its tokens needs."""

    model: str
    messages: list[MessageBody]
    system: str | list[TextBlock] | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl = None
    context_management: dict[str, Any] | None = None
    mcp_servers: list[Any] | None = None
    speed: str | None = None
    user_profile_id: str | None = None


class MessagesRequest(PromptBody, kw_only=True):
    """Body of POST /v1/messages; the last four fields are this server's own."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    container: Any = None
    inference_geo: str | None = None
    diagnostics: dict[str, Any] | None = None
    seed: int | None = None
    min_p: float | None = None
    priority: int | None = None
    deadline_ms: float | None = None
