"""The real model, held to schemas and to calls of tools it was never trained on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import subsecond
from subsecond.api import Model
from subsecond.engine.constraint import ConstraintMaker
from subsecond.engine.grammar.call_format import call_format
from subsecond.engine.grammar.compiler import GrammarCompiler
from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.engine.request import Request, SamplingParams
from subsecond.engine.text import Completion, TextStream
from subsecond.models.detokenizer import StreamingDetokenizer
from subsecond.models.tool_calls import Tool, ToolChoice
from subsecond.models.tool_splitter import ToolCallSplitter
from tests.unit.engine.held_answers import is_valid

pytestmark = pytest.mark.real_model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "population": {"type": "integer", "minimum": 0, "maximum": 99_999_999},
        "is_capital": {"type": "boolean"},
    },
    "required": ["name", "population", "is_capital"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
TOOLS = [Tool("get_weather", "The weather in a city", CITY), Tool("now", "The time")]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[Model]:
    with subsecond.load(smollm2_path, context_tokens=4096) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def compiler(model: Model) -> GrammarCompiler:
    return GrammarCompiler(model.checkpoint.tokenizer)


def answer(
    model: Model, text: str, constraint: ConstraintMaker, *, choice: ToolChoice | None = None, **settings: Any
) -> Completion:
    tokenizer = model.checkpoint.tokenizer
    syntax = model.prompts.tool_syntax
    assert syntax is not None
    messages = [{"role": "user", "content": text}]
    prompt_ids = (
        model.prompts.encode(messages, tools=TOOLS, tool_choice=choice) if choice else model.prompts.encode(text)
    )
    request = Request(
        prompt_ids=tuple(prompt_ids),
        params=SamplingParams(max_tokens=160, **settings),
        id=f"held-{next(NUMBERS)}",
        eos_ids=tokenizer.eos_ids,
        constraint=constraint,
    )
    splitter = ToolCallSplitter(syntax, tokenizer, [tool.name for tool in TOOLS]) if choice else None
    stream = TextStream(model.engine.submit(request), StreamingDetokenizer(tokenizer), tool_splitter=splitter)
    return stream.collect()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_valid_under_its_schema(model: Model, compiler: GrammarCompiler, temperature: float) -> None:
    make = compiler.compile(OutputFormat("json_schema", json.dumps(SCHEMA)))
    completion = answer(model, "Describe Paris as JSON.", make, temperature=temperature, seed=3)
    assert completion.finish_reason == "stop"
    assert is_valid(json.loads(completion.text), SCHEMA), completion.text
    again = answer(model, "Describe Paris as JSON.", make, temperature=temperature, seed=3)
    assert again.token_ids == completion.token_ids


def test_a_forced_call(model: Model, compiler: GrammarCompiler) -> None:
    syntax, tokenizer = model.prompts.tool_syntax, model.checkpoint.tokenizer
    assert syntax is not None
    assert syntax.is_generic
    for choice in (ToolChoice("required"), ToolChoice("named", "get_weather")):
        output = call_format(syntax, tokenizer, TOOLS, choice, is_parallel=False)
        assert output is not None
        completion = answer(model, "What is the weather in Paris?", compiler.compile(output), choice=choice)
        assert (completion.text, completion.finish_reason) == ("", "stop")
        (call,) = completion.tool_calls
        assert call.name == choice.name or (choice.name is None and call.name in ("get_weather", "now"))
        assert is_valid(json.loads(call.arguments), CITY if call.name == "get_weather" else {"maxProperties": 0})
