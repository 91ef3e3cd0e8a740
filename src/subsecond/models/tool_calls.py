"""Tools that a model may call and the calls it makes, as plain checked values; how a model writes them is elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from subsecond.core.errors import InputError
from subsecond.models.plain_data import use_room

MAX_TOOLS = 512
MAX_TOOL_CHARS = 2**20
MAX_TOOL_DEPTH = 64

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

ToolChoiceMode = Literal["auto", "none", "required", "named"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask the caller to run.

    parameters  JSON schema of the arguments, which are an object; an empty one says that there are none
    is_strict   arguments have to follow the schema wherever the model calls the tool, also when it is free to do so
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    is_strict: bool = False

    def as_function(self) -> dict[str, Any]:
        """The form in which chat templates expect a tool."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        function["parameters"] = dict(self.parameters) or {"type": "object", "properties": {}}
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


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of call number `index` of an answer; `name` comes with the first piece of a call only.

    The `arguments` of all pieces of a call, joined, are JSON text.
    """

    index: int
    name: str | None
    arguments: str


def check_tools(tools: Sequence[Tool], choice: ToolChoice) -> None:
    """Raise InputError for tools that cannot be offered together, or a choice that they do not allow."""
    if len(tools) > MAX_TOOLS:
        raise InputError(f"there are {len(tools)} tools; at most {MAX_TOOLS} are allowed")
    names = [tool.name for tool in tools]
    for number, tool in enumerate(tools, start=1):
        _check_tool(tool, f"tool {number}")
        if tool.name in names[: number - 1]:
            raise InputError(f"two tools have the name {tool.name!r}; give each a name of its own")
    room = MAX_TOOL_CHARS
    for tool in tools:
        what = f"tool {tool.name!r}, all tools together having {MAX_TOOL_CHARS} characters at most,"
        room = use_room([tool.description, tool.parameters], what, room, MAX_TOOL_DEPTH)
    if choice.mode in ("required", "named") and not tools:
        raise InputError(f"tool_choice asks for a call ({choice.mode}), but there are no tools; give some")
    if choice.name is not None and choice.name not in names:
        shown = ", ".join(names)[:500]
        raise InputError(f"tool_choice names {choice.name[:80]!r}, which is none of the tools; they are {shown}")


def _check_tool(tool: Tool, where: str) -> None:
    if not _NAME.fullmatch(tool.name):
        raise InputError(
            f"{where} has the name {tool.name[:80]!r}; a name has 1 to 64 letters, digits, '_', '-' and '.'"
        )
    parameters = tool.parameters
    if not isinstance(parameters, Mapping):
        raise InputError(f"the parameters of tool {tool.name!r} are {type(parameters).__name__}; give a JSON schema")
    if parameters.get("type", "object") != "object":
        kind = str(parameters["type"])[:50]
        raise InputError(f"the parameters of tool {tool.name!r} are of type {kind!r}; a tool takes an object")


def joined_calls(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """Return the whole calls that pieces make, in the order of their numbers."""
    names: dict[int, str] = {}
    pieces: dict[int, list[str]] = {}
    for delta in deltas:
        if delta.name is not None:
            names[delta.index] = delta.name
        pieces.setdefault(delta.index, []).append(delta.arguments)
    return tuple(ToolCall(names[index], "".join(pieces[index])) for index in sorted(names))
