"""Tools, choices among them and calls are checked values."""

from __future__ import annotations

from typing import Any

import pytest

from subsecond.core.errors import InputError
from subsecond.models.tool_calls import (
    FREE_CHOICE,
    MAX_TOOL_CHARS,
    MAX_TOOL_DEPTH,
    MAX_TOOLS,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    check_tools,
    joined_calls,
)

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


def test_what_templates_are_given() -> None:
    tool = Tool("f", "does", SCHEMA, is_strict=True)
    assert tool.as_function() == {
        "type": "function",
        "function": {"name": "f", "description": "does", "parameters": SCHEMA},
    }
    assert Tool("g").as_function()["function"] == {"name": "g", "parameters": {"type": "object", "properties": {}}}


def test_tools_that_can_be_offered() -> None:
    check_tools([], FREE_CHOICE)
    tools = [Tool("f", "x", SCHEMA), Tool("a.b-C_9" + "x" * 57, parameters={"x": [1, 2.5, None, True]})]
    for choice in (FREE_CHOICE, ToolChoice("none"), ToolChoice("required"), ToolChoice("named", "f")):
        check_tools(tools, choice)


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([Tool(f"f{number}") for number in range(MAX_TOOLS + 1)], FREE_CHOICE, "513 tools; at most 512"),
        ([Tool("f"), Tool("f")], FREE_CHOICE, "two tools have the name 'f'"),
        ([Tool("")], FREE_CHOICE, "tool 1 has the name ''"),
        ([Tool("f"), Tool("<|im_end|>")], FREE_CHOICE, "tool 2 has the name '<"),
        ([Tool("x" * 65)], FREE_CHOICE, "1 to 64 letters"),
        ([Tool("f", parameters=[1])], FREE_CHOICE, "'f' are list; give a JSON schema"),  # type: ignore[arg-type]
        ([Tool("f", parameters={"type": "array"})], FREE_CHOICE, "of type 'array'; a tool takes an object"),
        ([Tool("f", parameters={"x": {1: 2}})], FREE_CHOICE, "a key that is no text"),
        ([Tool("f", parameters={"x": float("nan")})], FREE_CHOICE, "holds a float"),
        ([Tool("f", parameters={"x": object()})], FREE_CHOICE, "holds a object"),
        ([Tool("f", parameters=nested(MAX_TOOL_DEPTH + 1))], FREE_CHOICE, "64 levels"),
        (
            [Tool("f", "x" * (MAX_TOOL_CHARS - 3)), Tool("g", "y")],
            FREE_CHOICE,
            "tool 'g', all tools together .* is too large",
        ),
        ([Tool("f", parameters={"x": ["y" * MAX_TOOL_CHARS]})], FREE_CHOICE, "tool 'f', .* is too large"),
        ([], ToolChoice("required"), "asks for a call .required., but there are no tools"),
        ([Tool("f")], ToolChoice("named", "g"), "names 'g', which is none of the tools; they are f"),
    ],
)
def test_what_cannot_be_offered(tools: list[Tool], choice: ToolChoice, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_tools(tools, choice)


def test_a_choice_has_a_name_where_it_names_a_tool() -> None:
    for mode, name in (("named", None), ("auto", "f"), ("any", None)):
        with pytest.raises(InputError, match="tool_choice"):
            ToolChoice(mode, name)  # type: ignore[arg-type]


def test_pieces_make_whole_calls() -> None:
    deltas = [
        ToolCallDelta(0, "f", '{"a"'),
        ToolCallDelta(1, "g", ""),
        ToolCallDelta(0, None, ": 1}"),
        ToolCallDelta(1, None, "{}"),
    ]
    assert joined_calls(deltas) == (ToolCall("f", '{"a": 1}'), ToolCall("g", "{}"))
    assert joined_calls([]) == ()
