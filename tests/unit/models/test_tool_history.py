"""Calls and results in a conversation: what is refused, the forms for templates, the words for those that know none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.models.tool_calls import FREE_CHOICE, Tool, ToolChoice
from subsecond.models.tool_history import (
    MAX_ARGUMENT_CHARS,
    MAX_CALLS,
    arguments_object,
    call_texts,
    check_calls,
    explained,
    forms_of,
    short_id,
)


def call(arguments: Any = '{"a": 1}', **fields: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}, **fields}


def asking(*calls: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": list(calls), **fields}


USER: dict[str, Any] = {"role": "user", "content": "u"}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "call_1", "content": "r"}
TOOLS = [Tool("f", "does", {"type": "object"}), Tool("g")]


def deep(levels: int) -> Any:
    return {"a": deep(levels - 1)} if levels else 1


@pytest.mark.parametrize(
    ("calls", "error", "message"),
    [
        ({}, InputError, "no list of 1 to 256"),
        ([call()] * (MAX_CALLS + 1), InputError, "no list of 1 to 256"),
        (["f"], InputError, "call 1 of message 3 has no function with a name"),
        ([call(), {"id": "x"}], InputError, "call 2 of message 3"),
        ([call(type="custom")], UnsupportedError, "another type"),
        ([call(function={"arguments": "{}"})], InputError, "no function with a name"),
        ([call(function={"name": 1})], InputError, "no function with a name"),
        ([call(function={"name": "f", "strict": True})], UnsupportedError, "'strict'"),
        ([call(extra=1)], UnsupportedError, "'extra'"),
        ([call(id=1)], InputError, "an id that is no text"),
        ([call(arguments=[1])], InputError, "arguments of type list"),
        ([call(arguments={"a": object()})], InputError, "arguments of call 1 .* holds a object"),
        ([call(arguments={1: 2})], InputError, "a key that is no text"),
        ([call(arguments=deep(66))], InputError, "nests deeper than 64"),
        ([call(arguments="x" * (MAX_ARGUMENT_CHARS + 1))], InputError, "too large"),
        ([call(arguments="x" * (MAX_ARGUMENT_CHARS - 1)), call()], InputError, "arguments of call 2 .* too large"),
    ],
)
def test_calls_that_cannot_be_read(calls: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_calls({"tool_calls": calls}, 3)


def test_calls_that_can_be_read() -> None:
    check_calls(asking(call(), call({"a": [1, None]}), {"function": {"name": "f"}}, call(index=0)), 1)


def test_the_most_common_form_comes_first() -> None:
    messages = [USER, asking(call(), call({"b": 2}), {"function": {"name": "g"}}, content=None), RESULT]
    forms = list(forms_of(messages))
    assert forms[0] == [
        USER,
        asking(
            call({"a": 1}),
            call({"b": 2}),
            {"type": "function", "function": {"name": "g", "arguments": {}}},
            content=None,
        ),
        RESULT,
    ]
    assert len(forms) == 8
    assert forms[1][1]["content"] == ""
    short = short_id("call_1")
    assert len(short) == 9
    assert [each["id"] for each in forms[2][1]["tool_calls"]][:2] == [short, short]
    assert len(forms[2][1]["tool_calls"][2]["id"]) == 9
    assert forms[2][2]["tool_call_id"] == short
    assert [each["function"]["arguments"] for each in forms[4][1]["tool_calls"][:2]] == ['{"a": 1}', '{"b": 2}']


def test_a_conversation_without_calls_has_one_form() -> None:
    messages = [USER, {"role": "assistant", "content": "a"}]
    assert list(forms_of(messages)) == [messages]
    assert next(forms_of([{"role": "assistant", "content": "a", "tool_calls": None}, RESULT])) == [
        {"role": "assistant", "content": "a"},
        RESULT,
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": [1.5, "é"]}', {"a": [1.5, "é"]}),
        ("", {}),
        (" ", {}),
        ({"a": 1}, {"a": 1}),
        ("[1]", None),
        ('{"a": NaN}', None),
        ('{"a": ', None),
        ("7", None),
        ("[" * 100_000, None),
        ('{"a":' * 80 + "1" + "}" * 80, None),
    ],
)
def test_arguments_as_an_object(arguments: Any, expected: Any) -> None:
    assert arguments_object(arguments) == expected


def test_short_ids() -> None:
    assert short_id("abcDEF123") == "abcDEF123"
    for text in ("call_1", "", "a" * 40, "äbcdefghi", "\ud800"):
        assert len(short_id(text)) == 9
        assert short_id(text).isalnum()
    assert short_id("call_1") != short_id("call_2")


def test_texts_of_calls_however_wrong_they_are() -> None:
    assert list(call_texts(asking(call(), {"function": {"arguments": "x"}}, 1, {"function": 2}))) == ['{"a": 1}', "x"]
    assert list(call_texts({"tool_calls": 7})) == []


def test_what_a_model_is_told_in_words() -> None:
    history: list[dict[str, Any]] = [
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        USER,
        asking(call(), call("no JSON"), content="So."),
        RESULT,
        {"role": "tool", "content": [{"type": "text", "text": "r"}, {"type": "text", "text": "2"}]},
        {"role": "assistant", "content": "a", "reasoning_content": "t", "tool_calls": None},
    ]
    (told,) = explained(history, TOOLS, FREE_CHOICE)
    system, *turns = told
    assert system["role"] == "system"
    assert system["content"].startswith("s\n\nYou can call")
    for tool in TOOLS:
        assert json.dumps(tool.as_function()["function"]) in system["content"]
    assert turns == [
        USER,
        {
            "role": "assistant",
            "content": 'So.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "f", "arguments": "no JSON"}\n</tool_call>',
        },
        {
            "role": "user",
            "content": "<tool_response>\nr\n</tool_response>\n<tool_response>\nr2\n</tool_response>",
        },
        {"role": "assistant", "content": "a", "reasoning_content": "t"},
    ]


def test_where_it_is_told() -> None:
    with_system, in_user = explained([USER], TOOLS, ToolChoice("named", "g"))
    assert [message["role"] for message in with_system] == ["system", "user"]
    assert "Call the function g now." in with_system[0]["content"]
    assert in_user[0]["content"] == with_system[0]["content"] + "\n\nu"
    assert "Call at least one function now." in next(explained([USER], TOOLS, ToolChoice("required")))[0]["content"]
    assert list(explained([USER, RESULT], [], FREE_CHOICE)) == [
        [USER, {"role": "user", "content": "<tool_response>\nr\n</tool_response>"}]
    ]
