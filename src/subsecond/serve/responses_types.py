"""Bodies of the responses API as it is spoken on the wire, decoded strictly; what they mean is decided elsewhere.

A field that stands here is honoured, refused by name or harmless; any other is refused when the body is decoded.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from subsecond.serve.fields import Body


class InputText(Body, tag="input_text", tag_field="type"):
    """Text that somebody else than the model wrote."""

    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class OutputText(Body, tag="output_text", tag_field="type"):
    """Text of an earlier answer."""

    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Refusal(Body, tag="refusal", tag_field="type"):
    """Text by which a model refused to answer."""

    refusal: str


class InputImage(Body, tag="input_image", tag_field="type"):
    """A picture; declared to be refused by name."""

    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class InputFile(Body, tag="input_file", tag_field="type"):
    """A file; declared to be refused by name."""

    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class InputAudio(Body, tag="input_audio", tag_field="type"):
    """Sound; declared to be refused by name."""

    input_audio: dict[str, Any] | None = None


ContentPart = InputText | OutputText | Refusal | InputImage | InputFile | InputAudio
Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Body):
    """What somebody said; the only item that may go without its type."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]
    type: Literal["message"] = "message"
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class FunctionCallItem(Body):
    """A call that the model made."""

    call_id: str
    name: str
    arguments: str
    type: Literal["function_call"] = "function_call"
    id: str | None = None
    status: Status | None = None
    namespace: str | None = None
    caller: dict[str, Any] | None = None


class FunctionCallOutputItem(Body):
    """What came of a call."""

    call_id: str
    output: str | list[ContentPart]
    type: Literal["function_call_output"] = "function_call_output"
    id: str | None = None
    status: Status | None = None
    name: str | None = None
    namespace: str | None = None
    caller: dict[str, Any] | None = None


class SummaryText(Body, tag="summary_text", tag_field="type"):
    """A part of the summary of reasoning."""

    text: str


class ReasoningText(Body, tag="reasoning_text", tag_field="type"):
    """A part of the reasoning itself."""

    text: str


class ReasoningItem(Body):
    """What the model wrote before it answered."""

    type: Literal["reasoning"] = "reasoning"
    id: str | None = None
    summary: list[SummaryText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


class FunctionTool(Body):
    """A function that the model may call."""

    name: str
    type: Literal["function"] = "function"
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    output_schema: dict[str, Any] | None = None


class NamespaceTool(Body):
    """Functions that belong together; the model calls them by the names of both."""

    name: str
    tools: list[msgspec.Raw]
    description: str = ""
    type: Literal["namespace"] = "namespace"


class ToolChoiceBody(Body, omit_defaults=True):
    """A choice among the tools that is more than a word."""

    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None
    server_label: str | None = None


class TextFormat(Body, omit_defaults=True):
    """What the text of the answer is held to."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextConfig(Body):
    """How the text of the answer shall be."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Body):
    """Whether and how the model shall reason before it answers."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class StreamOptions(Body):
    """How the events of a stream shall be."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Body):
    """Body of POST /v1/responses; the last seven fields are this server's own."""

    model: str
    input: str | list[msgspec.Raw] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: str | ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    context_management: list[Any] | None = None
    moderation: dict[str, Any] | None = None
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    user: str | None = None
    client_metadata: dict[str, Any] | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: str | list[str] | None = None
    repetition_penalty: float | None = None
    priority: int | None = None
    deadline_ms: float | None = None
