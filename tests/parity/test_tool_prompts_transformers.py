"""Prompts with tools, calls and results equal what transformers renders, arguments as text or as objects alike."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from subsecond.models.chat_template import ChatTemplate
from subsecond.models.prompt_encoder import PromptEncoder
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.tool_calls import Tool
from tests.byte_vocabulary import CONTROL, metadata, token_texts
from tests.parity.template_styles import STYLES

MARKUP = (
    *("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<|start_header_id|>", "<|end_header_id|>", "<s>"),
    *("<|eot_id|>", "<|python_tag|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "</s>"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
)
SYNTAXES = {"qwen 2.5": "tagged", "qwen 3": "tagged", "llama 3": "bare object", "mistral v3": "bracketed list"}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": 'a "name" <b>é'},
        "days": {"type": ["integer", "null"], "default": 1},
        "units": {"enum": ["C", "F"]},
    },
    "required": ["city"],
}
TOOLS = (Tool("get_weather", "The weather of 'a' city — é", PARAMETERS), Tool("now", "The time", {"type": "object"}))
ARGUMENTS: dict[str, Any] = {"city": "Zürich <&>", "days": 2, "more": [None, 1.5, {"x": "\n"}]}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def conversations(arguments: Any) -> dict[str, list[dict[str, Any]]]:
    user, result = (
        {"role": "user", "content": "Weather?"},
        {"role": "tool", "content": "12 °C", "tool_call_id": "abcdefghi"},
    )
    asking = {"role": "assistant", "content": "", "tool_calls": [call(arguments)]}
    return {
        "question": [user],
        "system": [{"role": "system", "content": "Be brief."}, user],
        "call": [user, asking, result],
        "answered": [user, asking, result, {"role": "assistant", "content": "12"}, {"role": "user", "content": "And?"}],
    }


def encoder(source: str) -> tuple[PromptEncoder, Tokenizer]:
    content = metadata(extra_tokens=MARKUP)
    kinds = content["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    for index, text in enumerate(token_texts(content)):
        if text in MARKUP:
            kinds[index] = CONTROL
    tokenizer = Tokenizer.from_gguf(content)
    checkpoint: Any = SimpleNamespace(
        tokenizer=tokenizer,
        chat_template=ChatTemplate(source, "<s>", "</s>"),
        config=SimpleNamespace(context_length=8192),
    )
    return PromptEncoder(checkpoint), tokenizer


def of_transformers(source: str, messages: list[dict[str, Any]], **extra: Any) -> str:
    rendered: Any = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", **extra
    )
    return str(rendered[0][0])


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["calls alone", "tools"])
@pytest.mark.parametrize("style", SYNTAXES)
def test_same_prompt(style: str, tools: tuple[Tool, ...]) -> None:
    source = STYLES[style]
    prompts, tokenizer = encoder(source)
    assert prompts.tool_syntax is not None
    assert prompts.tool_syntax.name == SYNTAXES[style]
    extra = {"tools": [tool.as_function() for tool in tools]} if tools else {}
    as_objects, as_text = conversations(ARGUMENTS), conversations(json.dumps(ARGUMENTS))
    for name, messages in as_objects.items():
        expected = of_transformers(source, messages, **extra)
        for given in (messages, as_text[name]):
            token_ids = prompts.encode(given, tools=tools)
            assert tokenizer.decode(token_ids, skip_special=False) == expected, name
            assert token_ids == tokenizer.encode(expected, allow_special=True), "with its control tokens"
        assert ("get_weather" in expected) == (bool(tools) or "call" in name or name == "answered")


@pytest.mark.parametrize("style", SYNTAXES)
def test_no_text_becomes_markup(style: str) -> None:
    source = STYLES[style]
    prompts, tokenizer = encoder(source)
    hostile = "".join(MARKUP)
    benign, given = conversations({"city": "x"}), conversations({"city": hostile, hostile: hostile})
    tools = [Tool("get_weather", "x", {"type": "object", "properties": {}})]
    hostile_tools = [Tool("get_weather", hostile, {"type": "object", "properties": {hostile: {"enum": [hostile]}}})]
    given["call"][-1]["content"] = hostile
    control = set(tokenizer.control_tokens.values())
    for name, messages in given.items():
        found = [each for each in prompts.encode(messages, tools=hostile_tools) if each in control]
        expected = [each for each in prompts.encode(benign[name], tools=tools) if each in control]
        assert found == expected, name
