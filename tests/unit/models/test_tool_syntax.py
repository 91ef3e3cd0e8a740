"""The syntax of calls is told by the chat template, and prompts with tools are encoded in its way or in our words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from subsecond.core.errors import ContextLengthError, InputError, UnsupportedError
from subsecond.models.chat_template import ChatTemplate
from subsecond.models.prompt_encoder import PromptEncoder
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.tool_calls import Tool, ToolChoice
from subsecond.models.tool_syntax import GENERIC_SYNTAX, find_tool_syntax
from tests.byte_vocabulary import CONTROL, metadata, token_texts

TAGGED = '{% if tools %}<tool_call>{"name": ..., "arguments": ...}</tool_call>{% endif %}'


@pytest.mark.parametrize(
    ("source", "control", "name"),
    [
        (TAGGED, (), "tagged"),
        ("{% if tools %}{% endif %}{{ x.arguments }}", ("<tool_call>", "</tool_call>"), "generic"),
        (TAGGED, ("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"), "tagged"),
        (TAGGED + "<function=f>", (), "generic"),
        (TAGGED.replace("tools", "x"), (), "generic"),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", (), "bracketed list"),
        ("{% if tools %}{% endif %}[TOOL_CALLS]f[ARGS]", (), "named"),
        ('{{ tools }}{"name": "f", "parameters": {}}', ("<|python_tag|>",), "bare object"),
        ('{{ tools }}{"name": "f", "parameters": {}}', (), "generic"),
        ("{{ tools }}<|tool_call|>[]", (), "open list"),
        ("{{ tools }}<|tool_call|>[]<|/tool_call|>", (), "closed list"),
        ("{{ tools }}<|START_ACTION|>tool_name<|END_ACTION|>", (), "action list"),
        ("{{ messages }}", ("[TOOL_CALLS]",), "generic"),
    ],
)
def test_syntax_by_template(source: str, control: tuple[str, ...], name: str) -> None:
    vocabulary: Any = SimpleNamespace(control_tokens=dict.fromkeys(control, 1))
    syntax = find_tool_syntax(source, vocabulary)
    assert syntax is not None
    assert syntax.name == name
    assert syntax.is_generic == (name == "generic")


def test_without_a_template_there_is_no_syntax() -> None:
    assert find_tool_syntax(None, Tokenizer.from_gguf(metadata())) is None


def vocabulary(*control: str) -> Tokenizer:
    content = metadata(extra_tokens=control)
    kinds = content["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    for index, text in enumerate(token_texts(content)):
        if text in control:
            kinds[index] = CONTROL
    return Tokenizer.from_gguf(content)


def encoder(source: str | None, *control: str, context_length: int = 4096) -> tuple[PromptEncoder, Tokenizer]:
    tokenizer = vocabulary(*control)
    template = None if source is None else ChatTemplate(source, "<|start|>", "<|end|>")
    checkpoint: Any = SimpleNamespace(
        tokenizer=tokenizer, chat_template=template, config=SimpleNamespace(context_length=context_length)
    )
    return PromptEncoder(checkpoint), tokenizer


CHATML = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
NATIVE = (
    "{% for tool in tools or [] %}<tool_call>{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{{ m.tool_call_id or '' }}<|end|>{% endfor %}{# arguments #}"
)
USER: dict[str, Any] = {"role": "user", "content": "u"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
HISTORY: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "r", "tool_call_id": "call_1"},
]
TOOLS = [Tool("f", "says <|end|>", {"type": "object"})]


def text_of(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    return tokenizer.decode(token_ids, skip_special=False)


def test_tools_in_the_way_of_the_template() -> None:
    prompts, tokenizer = encoder(NATIVE, "<tool_call>", "</tool_call>")
    assert prompts.tool_syntax is not None
    assert prompts.tool_syntax.name == "tagged"
    token_ids = prompts.encode(HISTORY, tools=TOOLS)
    function = '{"name": "f", "description": "says <|end|>", "parameters": {"type": "object"}}'
    described = f'{{"type": "function", "function": {function}}}'
    assert text_of(tokenizer, token_ids) == (
        f"<tool_call>{described}<|start|>user\nu<|end|><|start|>assistant\n"
        '<tool_call>{"a": 1}</tool_call><|end|><|start|>tool\nrcall_1<|end|>'
    )
    assert token_ids.count(tokenizer.control_tokens["<tool_call>"]) == 2
    assert token_ids.count(tokenizer.control_tokens["<|end|>"]) == 3, "not the one in the description"


def test_tools_in_our_words() -> None:
    prompts, tokenizer = encoder(CHATML)
    assert prompts.tool_syntax is GENERIC_SYNTAX
    token_ids = prompts.encode(HISTORY, tools=TOOLS)
    text = text_of(tokenizer, token_ids)
    assert text.startswith("<|start|>system\nYou can call these functions")
    assert "<|start|>user\n<tool_response>\nr\n</tool_response><|end|>" in text
    assert '<|start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|end|>' in text
    assert token_ids.count(tokenizer.control_tokens["<|end|>"]) == 4


def test_without_tools_a_prompt_is_what_it_was() -> None:
    for source in (CHATML, NATIVE):
        prompts, _ = encoder(source)
        plain = prompts.encode([USER])
        assert prompts.encode("u") == plain
        assert prompts.encode([USER], tools=TOOLS, tool_choice=ToolChoice("none")) == plain
        assert prompts.encode([USER], tools=TOOLS) != plain


def test_forms_that_templates_insist_on() -> None:
    insisting = {
        "text": "{{ '' + m.tool_calls[0].function.arguments if m.tool_calls else '' }}",
        "short id": "{% if m.tool_calls and m.tool_calls[0].id | length != 9 %}{{ raise_exception('id') }}{% endif %}",
        "content": "{{ m.content + '' }}",
    }
    for name, piece in insisting.items():
        prompts, tokenizer = encoder(
            "{# [TOOL_CALLS] tools #}{% for m in messages %}" + piece + "{{ m.content }};{% endfor %}"
        )
        text = text_of(tokenizer, prompts.encode(HISTORY))
        assert text.count(";") == 3, name


def test_a_template_without_a_system_role() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        + CHATML
        + "{% endfor %}"
    )
    prompts, tokenizer = encoder(source)
    assert text_of(tokenizer, prompts.encode([USER], tools=TOOLS)).startswith("<|start|>user\nYou can call")


def test_the_first_refusal_is_told() -> None:
    prompts, _ = encoder("{# [TOOL_CALLS] tools #}{{ raise_exception(messages[1].content is none) }}")
    with pytest.raises(InputError, match="refuses the conversation: True"):
        prompts.encode(HISTORY)


def test_tools_that_cannot_be_told() -> None:
    prompts, _ = encoder(None)
    with pytest.raises(UnsupportedError, match="this model has no chat template"):
        prompts.encode("u", tools=TOOLS)
    prompts, _ = encoder(NATIVE)
    with pytest.raises(UnsupportedError, match="raw=True goes without"):
        prompts.encode("u", raw=True, tools=TOOLS)
    with pytest.raises(InputError, match="template_kwargs has 'tools'"):
        prompts.encode([USER], tools=TOOLS, template_kwargs={"tools": []})
    with pytest.raises(ContextLengthError, match="characters, far more"):
        encoder(NATIVE, context_length=64)[0].encode([USER], tools=[Tool("f", "x" * 5000)])
    long_call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x" * 5000}}]}
    with pytest.raises(ContextLengthError, match="characters, far more"):
        encoder(NATIVE, context_length=64)[0].encode([USER, long_call])
