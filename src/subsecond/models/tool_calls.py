"""Tools that a model may call and the calls it makes, as plain checked values; how a model writes them is elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from subsecond.core.errors import InputError

ToolChoiceMode = Literal["auto", "none", "required", "named"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask the caller to run.

    parameters  JSON schema of the arguments, an object; an empty one allows any arguments
    is_strict   arguments have to follow the schema wherever the model calls the tool, also when it is free to do so
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    is_strict: bool = False

    def as_function(self) -> dict[str, Any]:
        """The form in which chat templates expect a tool."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model calls tools: as it likes, never, at least once, or the tool with this `name`."""

    mode: ToolChoiceMode = "auto"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(ToolChoiceMode):
            raise InputError(
                f"tool_choice is {str(self.mode)[:50]!r}; allowed are {', '.join(get_args(ToolChoiceMode))}"
            )
        if (self.mode == "named") != (self.name is not None):
            raise InputError("tool_choice has a name if and only if its mode is 'named'")


FREE_CHOICE = ToolChoice()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of an answer; `arguments` is JSON text as the model wrote it."""

    name: str
    arguments: str


class ToolCallDelta(NamedTuple):
    """The next piece of call number `index` of an answer; `name` comes with the first piece of a call only.

    The `arguments` of all pieces of a call, joined, are JSON text.
    """

    index: int
    name: str | None
    arguments: str


def check_tools(tools: Sequence[Tool], choice: ToolChoice) -> None:
    """Raise InputError for tools that cannot be offered together, or a choice that they do not allow."""
    raise NotImplementedError


def joined_calls(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """Return the whole calls that pieces make, in the order of their numbers."""
    names: dict[int, str] = {}
    pieces: dict[int, list[str]] = {}
    for delta in deltas:
        if delta.name is not None:
            names[delta.index] = delta.name
        pieces.setdefault(delta.index, []).append(delta.arguments)
    return tuple(ToolCall(names[index], "".join(pieces[index])) for index in sorted(names))
