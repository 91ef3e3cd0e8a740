"""Bodies of the chat and completions API as clients send them, decoded strictly; what they mean is decided elsewhere.

A field that stands here is honoured, refused by name or harmless; any other is refused when the body is decoded.
Fields that OpenAI's own API does not have are called as in vLLM, except `deadline_ms`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all bodies share: no field that is not declared."""


class TextPart(Body, tag="text", tag_field="type"):
    """Text of a message; where a prompt may be cached is our own business, so the breakpoint is harmless."""

    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class RefusalPart(Body, tag="refusal", tag_field="type"):
    """Text by which an assistant refused to answer, read as its text."""

    refusal: str


class ImagePart(Body, tag="image_url", tag_field="type"):
    """A picture; declared to be refused by name."""

    image_url: Any
    prompt_cache_breakpoint: dict[str, Any] | None = None


class AudioPart(Body, tag="input_audio", tag_field="type"):
    """Sound; declared to be refused by name."""

    input_audio: Any
    prompt_cache_breakpoint: dict[str, Any] | None = None


class FilePart(Body, tag="file", tag_field="type"):
    """A file; declared to be refused by name."""

    file: Any
    prompt_cache_breakpoint: dict[str, Any] | None = None


Content = str | list[TextPart | RefusalPart | ImagePart | AudioPart | FilePart]


class SystemMessage(Body, tag="system", tag_field="role"):
    """What the model is told before the conversation; `name` is harmless in every message, no template reads it."""

    content: Content
    name: str | None = None


class DeveloperMessage(Body, tag="developer", tag_field="role"):
    """The newer name of the same."""

    content: Content
    name: str | None = None


class UserMessage(Body, tag="user", tag_field="role"):
    """What a user says."""

    content: Content
    name: str | None = None


class CalledFunction(Body):
    """Name and arguments of a call, the latter as JSON text."""

    name: str
    arguments: str


class CustomInput(Body):
    """A call of a custom tool; declared to be refused by name."""

    name: str
    input: str


class MessageToolCall(Body):
    """A call that an earlier answer made."""

    id: str
    function: CalledFunction | None = None
    type: str = "function"
    custom: CustomInput | None = None
    index: int | None = None  # harmless: clients that put deltas together leave it in


class AssistantMessage(Body, tag="assistant", tag_field="role"):
    """An earlier answer, as a client was given it or made it up.

    audio and function_call are refused unless null; annotations are harmless.
    """

    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    function_call: Any = None
    audio: Any = None
    annotations: list[Any] | None = None


class ToolMessage(Body, tag="tool", tag_field="role"):
    """What a tool came to."""

    content: Content
    tool_call_id: str
    name: str | None = None


class FunctionMessage(Body, tag="function", tag_field="role"):
    """The older form of the same; declared to be refused by name."""

    content: str | None
    name: str


AnyMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


class StreamOptions(Body):
    """What a stream contains; obfuscation is padding, and its absence harmless."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class FunctionDefinition(Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Body):
    """A tool; those of another type than function are refused."""

    type: str
    function: FunctionDefinition | None = None
    custom: Any = None


class FunctionName(Body):
    """The name of a function."""

    name: str


class NamedToolChoice(Body, tag="function", tag_field="type"):
    """The one function to call."""

    function: FunctionName


class CustomToolChoice(Body, tag="custom", tag_field="type"):
    """A custom tool to call; declared to be refused by name."""

    custom: Any


class AllowedToolName(Body):
    """One of the functions that may be called."""

    type: str
    function: FunctionName


class AllowedTools(Body):
    """Those of the tools that may be called for this answer."""

    mode: Literal["auto", "required"]
    tools: list[AllowedToolName]


class AllowedToolChoice(Body, tag="allowed_tools", tag_field="type"):
    """A choice among some of the tools."""

    allowed_tools: AllowedTools


AnyToolChoice = Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolChoice | CustomToolChoice


class TextFormat(Body, tag="text", tag_field="type"):
    """Free text."""


class JsonObjectFormat(Body, tag="json_object", tag_field="type"):
    """Any JSON object."""


class NamedSchema(Body):
    """A schema with a name and a description, which are for people."""

    name: str
    description: str | None = None
    schema: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))
    strict: bool | None = None


class JsonSchemaFormat(Body, tag="json_schema", tag_field="type"):
    """JSON that is valid under a schema."""

    json_schema: NamedSchema


AnyFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(Body):
    """What an answer is held to, in vLLM's words; exactly one of these. `json` is a schema, or one as JSON text."""

    json: dict[str, Any] | bool | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class GenerationBody(Body):
    """The fields that chat and completions share.

    user is harmless. Those from top_k on are no part of OpenAI's API.
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: int | None = None
    deadline_ms: float | None = None


class ChatBody(GenerationBody, kw_only=True):
    """A request for the next message of a conversation.

    harmless    metadata, store: false, service_tier auto or default, prompt_cache_key, prompt_cache_options,
                prompt_cache_retention, safety_identifier, modalities ["text"], verbosity medium
    refused     audio, function_call, functions, moderation, prediction, web_search_options, other values of the former
    """

    messages: list[AnyMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: AnyFormat | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: AnyToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    modalities: list[str] | None = None
    verbosity: str | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    moderation: Any = None
    prediction: Any = None
    web_search_options: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionBody(GenerationBody, kw_only=True):
    """A request to continue a text, several texts, or the same as token ids; suffix and best_of are refused."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    best_of: int | None = None
