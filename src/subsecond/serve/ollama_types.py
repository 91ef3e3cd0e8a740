"""Bodies of Ollama's API as it is spoken on the wire, decoded strictly; what they mean is decided elsewhere.

A field that stands here is honoured, refused by name or harmless; any other is refused when the body is decoded.
"""

from __future__ import annotations

from typing import Any

from subsecond.serve.fields import Body


class FunctionCallBody(Body):
    """A call that an earlier answer made."""

    name: str
    arguments: dict[str, Any] = {}  # noqa: RUF012  msgspec copies it
    index: int | None = None
    description: str | None = None


class ToolCallBody(Body):
    """The same with its number, which few clients give."""

    function: FunctionCallBody
    id: str | None = None
    type: str | None = None


class MessageBody(Body):
    """What somebody said."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class FunctionBody(Body):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    """A tool, all of which are functions."""

    function: FunctionBody
    type: str = "function"


class OptionsBody(Body):
    """How to choose tokens and, of no effect on any answer, how other servers would load the model."""

    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalize_newline: bool | None = None
    num_ctx: int | None = None
    num_keep: int | None = None
    typical_p: float | None = None
    tfs_z: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    embedding_only: bool | None = None


class ModelBody(Body):
    """What every request has: whose model, and how long to keep it."""

    model: str
    keep_alive: str | float | None = None
    options: OptionsBody | None = None


class AnswerBody(ModelBody, kw_only=True):
    """What both requests for answers have; the last two fields are this server's own."""

    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None
    shift: bool | None = None
    priority: int | None = None
    deadline_ms: float | None = None


class ChatRequest(AnswerBody, kw_only=True):
    """Body of POST /api/chat."""

    messages: list[MessageBody] | None = None
    tools: list[ToolBody] | None = None


class GenerateRequest(AnswerBody, kw_only=True):
    """Body of POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[Any] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None


class EmbedRequest(ModelBody, kw_only=True):
    """Body of POST /api/embed."""

    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = None


class EmbeddingsRequest(ModelBody, kw_only=True):
    """Body of POST /api/embeddings, the older form for one text."""

    prompt: str


class ShowRequest(Body):
    """Body of POST /api/show; `name` is the older word for `model`."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
