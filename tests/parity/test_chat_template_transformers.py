"""Prompts equal those that transformers renders from the same templates."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from subsecond.models.chat_template import ChatTemplate

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITH_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0]['content'] }}
    {%- endif %}
    {{- "\\n\\nTools:" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '\\n{"name": "' ~ call.name ~ '", "arguments": ' ~ (call.arguments | tojson) ~ '}' }}
        {%- endfor %}
    {%- elif message.role == "tool" and (loop.last or messages[loop.index0 + 1].role != "tool") %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
STYLES = """\
{{ bos_token }}{% set ns = namespace(system='', turns=[]) %}
{% for message in messages %}
  {% if message['role'] == 'system' %}
    {% set ns.system = ns.system ~ message['content'] | trim %}
  {% else %}
    {% set ns.turns = ns.turns + [message] %}
  {% endif %}
{% endfor %}
{%- macro turn(message, index) -%}
[{{ index }}:{{ message.role | upper }}] {{ message.content.split('</think>')[-1].lstrip() | trim }}{{ eos_token }}
{%- endmacro -%}
{{ ns.system | default('none', true) }}
{% for message in ns.turns[-3:] %}{{ turn(message, loop.index0) }}{{ ',' if not loop.last }}
{% else %}no turns{% endfor %}
{{ ns.turns | map(attribute='role') | unique | list }}{{ ns.turns | selectattr('role', 'eq', 'user') | list | length }}
"""
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi <b>&amp;</b> \"quoted\" 'é' 😀\n\n"}],
    [{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": "{{ 1 }}"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>x</think>\n b"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ],
    [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"city": "Zürich <>"}}}],
        },
        {"role": "tool", "content": "12"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": ["city"]}}}]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("extra", [{}, {"tools": TOOLS}, {"enable_thinking": False}], ids=["plain", "tools", "extra"])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one", "system", "turns", "calls"])
@pytest.mark.parametrize("source", [SMOLLM2, CHATML_WITH_TOOLS, STYLES], ids=["smollm2", "chatml", "styles"])
def test_same_prompt(
    source: str, messages: list[dict[str, Any]], extra: dict[str, Any], add_generation_prompt: bool
) -> None:
    ours = ChatTemplate(source, "<s>", "</s>").render(messages, add_generation_prompt=add_generation_prompt, **extra)
    rendered: Any = render_jinja_template(
        [messages],
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
        **extra,
    )
    assert ours == rendered[0][0]
    assert ours.strip()
