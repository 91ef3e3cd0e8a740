"""Templates in the styles of the families give the texts that transformers gives, or refuse where it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from subsecond.core.errors import SubsecondError
from subsecond.models.chat_template import ChatTemplate
from tests.parity.template_styles import DEEPSEEK_R1, GEMMA_2, LLAMA_3, MISTRAL_V1, QWEN_3, STYLES


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def text_parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich <&>", "days": 2}},
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [user("Hi")],
    "empty": [user("")],
    "white space": [user("  a \n\n"), assistant("\n b "), user("\tc")],
    "unicode": [
        system("日本語で"),
        user("naïve 😀 \u200b\u202e 'q' \"d\" <b>&amp;</b>"),
        assistant("Ω≈ç"),
        user("ok\x00"),
    ],
    "system": [system("  Be brief. /no_think"), user("Why?"), assistant("So."), user("And?")],
    "two systems": [system("a"), user("b"), assistant("c"), system("d"), user("e")],
    "system alone": [system("Only this. /system_override")],
    "assistant first": [assistant("a"), user("b")],
    "two users": [user("a"), user("b")],
    "ends with assistant": [user("a"), assistant("b")],
    "syntax": [user("{{ 7 * 7 }}{% raise %}"), assistant("{# x #}"), user("[/INST]<|im_end|></s>")],
    "thought in content": [
        user("a"),
        assistant("<think>\nhm\n</think>\n\nb"),
        user("c"),
        assistant("<think>x</think>y"),
    ],
    "thought beside": [
        user("a"),
        assistant("b", reasoning_content="hm\nhm"),
        user("c"),
        assistant("d", reasoning_content="e"),
    ],
    "call": [
        user("Weather?"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": "12 °C", "tool_call_id": "x"},
    ],
    "two calls": [
        system("s"),
        user("Weather?"),
        assistant("Let me see.", tool_calls=[CALL, CALL]),
        {"role": "tool", "name": "get_weather", "content": '{"t": 12}'},
        {"role": "tool", "name": "get_weather", "content": ""},
        assistant("12"),
        user("thanks"),
    ],
    "parts": [user(text_parts("a ", " b")), assistant(text_parts("c")), user(text_parts("d"))],
    "system parts": [system(text_parts("s")), user(text_parts())],
    "no content": [user("a"), assistant(None), user("b")],
    "unknown role": [user("a"), {"role": "critic", "content": "b"}],
    "long": [message for number in range(20) for message in (user(f"q{number}"), assistant(f"a{number}"))],
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of 'a' \"city\" — é",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "<name>"},
                    "days": {"type": ["integer", "null"], "default": 1},
                    "units": {"type": "array", "items": {"type": "string", "enum": ["C", "F"]}},
                    "place": {"type": "object", "properties": {"x": {"type": "number"}}, "required": []},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object"}}},
]
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": TOOLS},
    "off": {"enable_thinking": False},
    "more": {"enable_thinking": True, "tools": TOOLS, "tools_in_user_message": False, "date_string": "1 May 2025"},
}
REFUSED = "(refused)"


def rendered(render: Callable[[], str]) -> str:
    """The text, or that the template refuses the conversation or fails on it; the words of a failure may differ."""
    try:
        return render()
    except (SubsecondError, jinja2.TemplateError, TypeError, AttributeError, KeyError):
        return REFUSED


def of_transformers(source: str, messages: list[dict[str, Any]], **extra: Any) -> str:
    texts: Any = render_jinja_template([messages], chat_template=source, bos_token="<s>", eos_token="</s>", **extra)
    return str(texts[0][0])


@pytest.mark.parametrize("source", STYLES.values(), ids=STYLES)
def test_same_text_or_same_refusal(source: str) -> None:
    template = ChatTemplate(source, "<s>", "</s>")
    num_texts = 0
    for case, messages in CONVERSATIONS.items():
        for name, extra in EXTRAS.items():
            for has_prompt in (True, False):
                ours = rendered(lambda: template.render(messages, add_generation_prompt=has_prompt, **extra))  # noqa: B023
                theirs = rendered(lambda: of_transformers(source, messages, add_generation_prompt=has_prompt, **extra))  # noqa: B023
                assert ours == theirs, f"{case}, {name}, generation prompt {has_prompt}"
                num_texts += ours != REFUSED
    assert num_texts >= 24, "most conversations have a text"


def prompt(source: str, *messages: dict[str, Any], **extra: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages, **extra)


def test_the_styles_are_what_they_stand_for() -> None:
    """Guards the templates of this test: that each reaches the part that makes its family special."""
    assert prompt(DEEPSEEK_R1, user("a")).endswith("<think>\n")
    assert prompt(DEEPSEEK_R1, user("a"), assistant("<think>x</think>y"), user("z")).count("x") == 0
    assert prompt(QWEN_3, user("a"), enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert "\nhm\n" in prompt(QWEN_3, user("a"), assistant("b", reasoning_content="hm"))
    assert "get_weather" in prompt(LLAMA_3, user("a"), tools=TOOLS)
    for source, messages in ((GEMMA_2, [system("s"), user("a")]), (MISTRAL_V1, [user("a"), user("b")])):
        assert rendered(lambda: prompt(source, *messages)) == REFUSED  # noqa: B023
