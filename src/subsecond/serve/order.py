"""What a generation request of any API comes to, as one frozen value that knows no wire format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from subsecond.core.errors import InputError
from subsecond.engine.request import SamplingParams
from subsecond.models.prompt import Message

if TYPE_CHECKING:
    from subsecond.engine.grammar.output_format import OutputFormat
    from subsecond.models.tool_calls import Tool, ToolChoice


@dataclass(frozen=True, slots=True)
class Order:
    """One prompt with everything that decides its answers.

    messages         a conversation, to which the chat template is applied; None for a raw prompt
    prompt           a text as it is, or token ids; None for a conversation
    params           of every sample; without a seed one is drawn, the same for all samples
    num_samples      answers wanted; they differ by their random numbers and compute the prompt once
    has_logprobs     whether parts carry the log-probabilities of their tokens, params.num_logprobs others with each
    tools            functions that the model may call; only with messages
    tool_choice      None is "auto" where there are tools
    is_parallel      whether one answer may have several calls
    output           what the answer is held to; None for free text
    is_continuation  the last message is the beginning of the assistant's answer, to be continued
    enable_thinking  turns reasoning on or off where the template has a switch; None leaves it to the model
    priority         lower is served first; deadline_ms counts from the moment the order is started
    """

    model: str
    params: SamplingParams
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    num_samples: int = 1
    has_logprobs: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    is_parallel: bool = True
    output: OutputFormat | None = None
    is_continuation: bool = False
    enable_thinking: bool | None = None
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    priority: int = 0
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise InputError("give either messages or a prompt")
        if self.num_samples < 1:
            raise InputError(f"n={self.num_samples} is not allowed; give at least 1")
