"""Answers that have to call tools do so in the syntax of the model, and the splitter reads back what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.engine.grammar.call_format import MAX_CALLS, call_format
from subsecond.engine.grammar.compiler import GrammarCompiler
from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.models.detokenizer import StreamingDetokenizer
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.tool_calls import FREE_CHOICE, Tool, ToolCall, ToolCallDelta, ToolChoice, joined_calls
from subsecond.models.tool_splitter import ToolCallSplitter
from subsecond.models.tool_syntax import GENERIC_SYNTAX, KNOWN_SYNTAXES, ToolSyntax
from tests.byte_vocabulary import CONTROL, USER_DEFINED, metadata, token_texts
from tests.unit.engine.held_answers import allowed_by, is_valid, random_answer

SYNTAXES = {syntax.name: syntax for syntax in (*KNOWN_SYNTAXES, GENERIC_SYNTAX)}
TAGGED, BARE, NAMED = (SYNTAXES[name] for name in ("tagged", "bare object", "named"))

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city"],
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS = (Tool("get_weather", "w", CITY), Tool("now"), Tool("get", "", {"properties": {"x": {"type": "null"}}}))
STRICT = tuple(replace(tool, is_strict=True) for tool in TOOLS)
NAMES = [tool.name for tool in TOOLS]
REQUIRED = ToolChoice("required")


def vocabulary(syntax: ToolSyntax, kind: int | None) -> Tokenizer:
    """A vocabulary with the markers of a syntax as tokens of this kind, or without them."""
    markers = list(syntax.markers) if kind is not None else []
    content = metadata(merges=['{ "', '" :', "Ġ {", "} Ċ"], extra_tokens=markers)
    kinds = content["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    for index, text in enumerate(token_texts(content)):
        if text in markers:
            kinds[index] = kind
    return Tokenizer.from_gguf(content)


def read(syntax: ToolSyntax, tokenizer: Tokenizer, token_ids: list[int]) -> tuple[str, tuple[ToolCall, ...]]:
    splitter, detokenizer = ToolCallSplitter(syntax, tokenizer, NAMES), StreamingDetokenizer(tokenizer)
    texts: list[str] = []
    deltas: list[ToolCallDelta] = []
    for token_id in token_ids:
        text, found = splitter.push(token_id, detokenizer.push(token_id))
        texts.append(text)
        deltas += found
    text, found = splitter.finish(detokenizer.finish())
    return "".join([*texts, text]), joined_calls([*deltas, *found])


def is_allowed(call: ToolCall) -> bool:
    """Whether the arguments are valid, and none that nobody described."""
    schema = next(tool.parameters for tool in TOOLS if tool.name == call.name)
    arguments = json.loads(call.arguments, strict=False)
    return is_valid(arguments, {**schema, "type": "object"}) and set(arguments) <= set(schema.get("properties", ()))


def constraint_maker(syntax: ToolSyntax, tokenizer: Tokenizer, tools: Any, choice: ToolChoice, **options: Any) -> Any:
    output = call_format(syntax, tokenizer, tools, choice, **options)
    assert output is not None
    return GrammarCompiler(tokenizer).compile(output)


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, None])
@pytest.mark.parametrize("name", SYNTAXES)
def test_answers_that_have_to_call(name: str, kind: int | None) -> None:
    syntax = SYNTAXES[name]
    tokenizer = vocabulary(syntax, kind)
    make = constraint_maker(syntax, tokenizer, TOOLS, REQUIRED)
    counts = set()
    for seed in range(12):
        text, calls = read(syntax, tokenizer, random_answer(make(), tokenizer, seed))
        assert text == ""
        assert 1 <= len(calls) <= MAX_CALLS
        assert all(map(is_allowed, calls)), calls
        counts.add(len(calls))
    assert len(counts) > 1


@pytest.mark.parametrize("name", SYNTAXES)
def test_one_call_of_one_tool(name: str) -> None:
    syntax = SYNTAXES[name]
    tokenizer = vocabulary(syntax, CONTROL)
    named = constraint_maker(syntax, tokenizer, TOOLS, ToolChoice("named", "get_weather"))
    single = constraint_maker(syntax, tokenizer, TOOLS, REQUIRED, is_parallel=False)
    names = set()
    for seed in range(8):
        _, calls = read(syntax, tokenizer, random_answer(named(), tokenizer, seed))
        assert [call.name for call in calls] == ["get_weather"]
        _, calls = read(syntax, tokenizer, random_answer(single(), tokenizer, seed))
        assert len(calls) == 1
        names.add(calls[0].name)
    assert len(names) > 1


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, None])
@pytest.mark.parametrize("syntax", [TAGGED, NAMED, SYNTAXES["closed list"], GENERIC_SYNTAX], ids=lambda each: each.name)
def test_free_answers_with_strict_tools(syntax: ToolSyntax, kind: int | None) -> None:
    tokenizer = vocabulary(syntax, kind)
    make = constraint_maker(syntax, tokenizer, STRICT, FREE_CHOICE)
    spelled = tokenizer.encode(syntax.opening, allow_special=not syntax.is_generic)
    begin = [*tokenizer.encode("I look { < [. "), *spelled]
    constraint = make()
    for token_id in begin[:-1]:
        allowed_by(constraint, tokenizer.vocab_size)
        constraint.advance(token_id)
    assert len(allowed_by(constraint, tokenizer.vocab_size)) > 50, "text is free"
    for seed in range(6):
        token_ids = random_answer(make(), tokenizer, seed, begin=begin)
        text, calls = read(syntax, tokenizer, token_ids)
        assert text == "I look { < [."
        assert calls
        assert all(map(is_allowed, calls))
    plain = [*tokenizer.encode("Hello."), tokenizer.eos_ids[0]]
    assert read(syntax, tokenizer, random_answer(make(), tokenizer, 1, begin=plain)) == ("Hello.", ())


def test_free_answers_where_a_brace_begins_a_call() -> None:
    tokenizer = vocabulary(BARE, CONTROL)
    make = constraint_maker(BARE, tokenizer, STRICT, FREE_CHOICE)
    for seed in range(6):
        _, calls = read(BARE, tokenizer, random_answer(make(), tokenizer, seed, begin=tokenizer.encode("{")))
        assert calls
        assert all(map(is_allowed, calls))
    plain = [*tokenizer.encode("Hello {."), tokenizer.eos_ids[0]]
    assert read(BARE, tokenizer, random_answer(make(), tokenizer, 1, begin=plain)) == ("Hello {.", ())
    assert set(tokenizer.eos_ids) <= set(allowed_by(make(), tokenizer.vocab_size)), "an empty answer"


def test_calls_or_an_answer_of_a_form() -> None:
    tokenizer = vocabulary(TAGGED, USER_DEFINED)
    properties = {"name": {"const": "Bob"}}
    schema = {"type": "object", "properties": properties, "required": ["name"], "additionalProperties": False}
    for output in (OutputFormat("json_schema", json.dumps(schema)), OutputFormat("regex", r'\{ ?"name": ?"Bob"\}')):
        make = constraint_maker(TAGGED, tokenizer, TOOLS, FREE_CHOICE, output=output)
        opening = tokenizer.control_tokens[TAGGED.opening]
        for seed in range(4):
            _, calls = read(TAGGED, tokenizer, random_answer(make(), tokenizer, seed, begin=[opening]))
            assert calls
            text, calls = read(
                TAGGED, tokenizer, random_answer(make(), tokenizer, seed, begin=tokenizer.encode('{"name'))
            )
            assert not calls
            assert json.loads(text) == {"name": "Bob"}


def test_free_answers_with_one_call_at_most() -> None:
    tokenizer = vocabulary(TAGGED, CONTROL)
    make = constraint_maker(TAGGED, tokenizer, TOOLS, FREE_CHOICE, is_parallel=False)
    begin = tokenizer.encode("So: <tool_call>", allow_special=True)
    for seed in range(6):
        _, calls = read(TAGGED, tokenizer, random_answer(make(), tokenizer, seed, begin=begin))
        assert len(calls) == 1


def test_answers_that_are_free() -> None:
    tokenizer, output = vocabulary(TAGGED, None), OutputFormat("json_object")
    assert call_format(TAGGED, tokenizer, TOOLS, FREE_CHOICE) is None
    assert call_format(TAGGED, tokenizer, (), FREE_CHOICE) is None
    assert call_format(TAGGED, tokenizer, STRICT, ToolChoice("none")) is None
    assert call_format(TAGGED, tokenizer, STRICT, ToolChoice("none"), output=output) is output


def test_schemas_that_cannot_be_enforced() -> None:
    tokenizer = vocabulary(TAGGED, None)
    tool = Tool("f", "", {"type": "object", "properties": {"a": {"not": {}}}})
    output = call_format(TAGGED, tokenizer, [tool], REQUIRED)
    assert output is not None
    assert output.unenforced == ("f: #/properties/a/not",)
    assert GrammarCompiler(tokenizer).compile(output).unenforced == output.unenforced
    with pytest.raises(UnsupportedError, match=r"parameters of tool 'f' at #/properties/a/not"):
        call_format(TAGGED, tokenizer, [replace(tool, is_strict=True)], FREE_CHOICE)
    with pytest.raises(InputError, match="parameters of tool 'f' at #/properties: "):
        call_format(TAGGED, tokenizer, [Tool("f", "", {"properties": 1})], REQUIRED)
    with pytest.raises(UnsupportedError, match="tools and an answer by a grammar"):
        call_format(TAGGED, tokenizer, TOOLS, FREE_CHOICE, output=OutputFormat("grammar", "start: /a/"))
    with pytest.raises(InputError, match="the form of tool calls cannot be used"):
        bad = Tool("f", "", {"type": "object", "properties": {"a": {"pattern": "("}}})
        constraint_maker(TAGGED, tokenizer, [bad], REQUIRED)
