"""Chat templates: what they render, what they may not do, and that hostile ones end soon with a plain error."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.models.chat_template import ChatTemplate
from subsecond.models.template_meter import DEFAULT_LIMITS, LimitError, TemplateLimits

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
# no time that a busy machine could reach in place of the limit that is looked for
LIMITS = replace(DEFAULT_LIMITS, timeout_s=300, max_steps=200_000, max_work=1 << 24, max_value_length=1 << 21)


def render(source: str, messages: object = MESSAGES, *, limits: TemplateLimits = LIMITS, **extra: object) -> str:
    return ChatTemplate(source, "<s>", "</s>", limits).render(messages, **extra)  # type: ignore[arg-type]


def test_chatml() -> None:
    turns = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert render(CHATML) == turns + "<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == turns


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{% if tools is none %}none{% endif %}{% if documents %}x{% endif %}", "none"),
        ("{{ enable_thinking }}", "True"),
        ("{{ missing }}{% if missing is defined %}x{% endif %}{{ missing | default('d') }}", "d"),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ {'a': '<é>', 'b': [1, none]} | tojson }}", '{"a": "<é>", "b": [1, null]}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "0234"),
        ("{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}", "1/2False 2/2True "),
        ("{% for m in messages %}{{ (loop.nextitem or {}).role }};{% endfor %}", "assistant;;"),
        ("{% for m in [] %}x{% else %}empty{% endfor %}", "empty"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "Hi"),
        ("{{ messages[1:] | length }}{{ messages[::-1][0].role }}{{ 'abc'[:2] }}{{ 'abc'[-1] }}", "1assistantabc"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% macro f(x, y='!') %}{{ x ~ y }}{% endmacro %}{{ f(1) }}{{ f(2, y='?') }}", "1!2?"),
        ("{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}c{% endcall %}", "[c]"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}{% filter trim %} b {% endfilter %}", "A1b"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user, assistant"),
        ("{{ '-'.join(messages | map(attribute='role')) }}", "user-assistant"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | first }}", "Hello"),
        ("{{ [3, 1, 2] | sort | join }}{{ {'b': 1, 'a': 2} | dictsort | first | last }}", "1232"),
        ("{{ ' a,b '.strip().split(',')[1] }}{{ 'x</think>y'.split('</think>')[-1].lstrip('\\n') }}", "by"),
        ("{{ 'aXbX' | replace('X', '-') }}{{ 'aXbX'.replace('X', '-', 1) }}", "a-b-a-bX"),
        ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        (
            "{{ 7 % 2 }} {{ 2 ** 5 }} {{ 3 * 'ab' }} {{ [1] + [2] }} {{ 7 // 2 }} {{ 1.26 | round(1) }}",
            "1 32 ababab [1, 2] 3 1.3",
        ),
        ("{{ 'a' in 'abc' and 1 not in [2] and messages is iterable and 'x' is string }}", "True"),
        ("{{ dict(a=1).get('b', 'z') }}{{ loop is undefined }}", "zTrue"),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}", "Hello"),
        ("{{ strftime_now('%%') }}{{ strftime_now('%Y') | length }}", "%4"),
    ],
)
def test_what_templates_use(source: str, text: str) -> None:
    assert render(source, enable_thinking=True) == text


def test_a_template_can_refuse_the_conversation() -> None:
    with pytest.raises(InputError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def repeated(step: str, start: str = "'a'", rounds: int = 90) -> str:
    """A template that sets ns.x to `start`, then `rounds` times to `step`."""
    return (
        f"{{% set ns = namespace(x={start}, y={start}) %}}{{% for i in range({rounds}) %}}"
        f"{{% set ns.x = {step} %}}{{% endfor %}}"
    )


NEST = repeated("[ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y]", "[1]")
PAIRS = repeated("(ns.x, ns.x)", "(1,)")
COSTLY = {
    "huge range": "{% for i in range(10**9) %}x{% endfor %}",
    "range as a list": "{{ range(10**9) | list }}",
    "nested loops": "{% for i in range(60000) %}{% for j in range(60000) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for i in range(60000) %}{% for j in range(60000) if false %}{% endfor %}{% endfor %}",
    "text times number": "{{ 'a' * 10**9 }}",
    "number times text": "{{ 10**9 * 'a' }}",
    "list times number": "{{ [1] * 10**9 }}",
    "power": "{{ 9 ** 99999999 }}",
    "product": repeated("ns.x * ns.x", "9"),
    "branching recursion": "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "doubling with +": repeated("ns.x + ns.x"),
    "doubling with ~": repeated("ns.x ~ ns.x"),
    "doubling with join": repeated("[ns.x, ns.x] | join"),
    "doubling with str.join": repeated("ns.x.join('aaa')"),
    "doubling with replace": repeated("ns.x.replace('a', 'aa')"),
    "doubling with the filter": repeated("ns.x | replace('', 'aa')"),
    "doubling with set": repeated("ns.x %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y"),
    "doubling a list": repeated("ns.x + ns.x", "[1]"),
    "printing shared lists": NEST + "{{ ns.x }}",
    "JSON of shared lists": NEST + "{{ ns.x | tojson }}",
    "text of shared lists": NEST + "{{ ns.x | string }}",
    "joining shared lists": NEST + "{{ ns.x | join }}",
    "comparing shared lists": NEST + "{{ ns.x == ns.y }}",
    "testing shared lists": NEST + "{{ ns.x is eq ns.y }}",
    "searching shared lists": NEST + "{{ ns.x in [ns.y] }}",
    "selecting shared lists": NEST + "{{ [ns.x] | select('eq', ns.y) | list }}",
    "sorting shared lists": NEST + "{{ [ns.x, ns.y] | sort }}",
    "counting shared lists": NEST + "{{ [ns.x].count(ns.y) }}",
    "hashing shared tuples": PAIRS + "{{ {ns.x: 1} }}",
    "looking up shared tuples": PAIRS + "{{ {}[ns.x] }}",
    "slices kept": "{% set b = 'a' * 1000000 %}" + repeated("ns.x + [b[i:]]", "[]", rounds=60000),
    "output": "{% for i in range(60000) %}" + "y" * 100_000 + "{% endfor %}",
    "captured output": "{% set b = 'a' * 1000000 %}{% set y %}{% for i in range(99) %}{{ b }}{% endfor %}{% endset %}",
    "split": "{{ ('ab' * 1000000).split('a') }}",
    "characters": "{{ ('ab' * 1000000) | list }}",
    "list comparisons": "{% set l = range(60000) | list %}{% for i in range(60000) %}{{ l == l[:] }}{% endfor %}",
    "merged mappings": repeated("dict(ns.x, **{'a' ~ i: i})", "{}", rounds=60000),
}
FORBIDDEN = {
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "folded filter": "{{ 'a' | center(1000000000) }}",
    "mapped filter": "{{ ['a'] | map('center', 1000000000) | list }}",
    "padding": "{{ 'a'.ljust(1000000000) }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "format method taken aside": "{% set f = '{:>1000000000}'.format %}{{ f(1) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "time width": "{{ strftime_now('%1000000000Y') }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "JSON indent": "{{ [1] | tojson(indent=1000000000) }}",
    "rounding": "{{ 1 | round(1000000000, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "attribute filter": "{{ '' | attr('__class__') }}",
    "globals": "{{ raise_exception.__globals__['x'] }}",
    "namespace's insides": "{{ namespace() }}",
    "function's address": "{{ range }}",
    "changing the messages": "{{ messages.append(1) }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'x' as x %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block x %}{{ self.x() }}{% endblock %}",
    "recursive loop": "{% for m in [[[1]]] recursive %}{{ loop(m) }}{% endfor %}",
    "deep expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep list": "{{ " + "[" * 300 + "]" * 300 + " }}",
    "long expression": "{{ a" + " ~ b" * 20_000 + " }}",
    "unknown filter": "{{ 1 | nothing }}",
    "unknown test": "{{ 1 is nothing }}",
}
INVALID = {
    "deep statements": "{% if a %}" * 500 + "{% endif %}" * 500,
    "deep loops": "{% for a in b %}" * 50 + "{% endfor %}" * 50,
    "long number": "{{ " + "1" * 5000 + " }}",
    "syntax": "{{ unclosed",
    "no end": "{% if x %}",
}
FAILING = {
    "lorem ipsum": "{{ lipsum(n=1000000000) }}",
    "undefined": "{{ missing.attribute }}",
    "division": "{{ 1 / 0 }}",
    "type": "{{ 'a' + 1 }}",
}


@pytest.mark.parametrize("source", COSTLY.values(), ids=COSTLY)
def test_costly_templates_reach_a_limit(source: str) -> None:
    with pytest.raises(LimitError):
        render(source, limits=replace(LIMITS, timeout_s=0.3))


@pytest.mark.parametrize("source", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_the_sandbox_refuses_is_unsupported(source: str) -> None:
    with pytest.raises(UnsupportedError, match="the chat template"):
        render(source)


@pytest.mark.parametrize("source", INVALID.values(), ids=INVALID)
def test_what_is_no_program_is_a_format_error(source: str) -> None:
    with pytest.raises((FormatError, UnsupportedError), match="the chat template"):
        render(source)
    if source == INVALID["syntax"]:
        with pytest.raises(FormatError, match="TemplateSyntaxError"):
            render(source)


@pytest.mark.parametrize("source", FAILING.values(), ids=FAILING)
def test_a_template_that_fails_on_a_conversation_is_an_input_error(source: str) -> None:
    with pytest.raises(InputError, match="the chat template fails"):
        render(source)


def test_every_rendering_has_limits_of_its_own() -> None:
    template = ChatTemplate("{% for i in range(60000) %}{% endfor %}", "", "", replace(LIMITS, max_steps=70_000))
    for _ in range(3):
        template.render(MESSAGES)


def test_source_and_messages_are_limited() -> None:
    with pytest.raises(InputError, match="bytes"):
        ChatTemplate("é" * (LIMITS.max_source_bytes // 2 + 1), "", "", LIMITS)
    with pytest.raises(InputError, match="messages"):
        ChatTemplate("", "", "", replace(LIMITS, max_messages=1)).render(MESSAGES)
    with pytest.raises(InputError, match="writes more than"):
        ChatTemplate("{{ 'a' * 101 }}", "", "", replace(LIMITS, max_output_chars=100)).render(MESSAGES)


def test_a_long_conversation_is_not_hostile() -> None:
    messages = [{"role": "user", "content": "word " * 200} for _ in range(2000)]
    text = ChatTemplate(CHATML, "", "", replace(DEFAULT_LIMITS, timeout_s=300)).render(messages)
    assert text.count("word") == 400_000


@pytest.mark.parametrize("messages", [["text"], [{"role": "user", "content": object()}], [{"role": {1, 2}}]])
def test_messages_must_be_plain_data(messages: list[object]) -> None:
    with pytest.raises(InputError):
        render(CHATML, messages)


def test_messages_are_not_changed_and_do_not_run() -> None:
    messages = [{"role": "user", "content": "{{ raise_exception('ran') }}{% endfor %}"}]
    assert "{{ raise_exception('ran') }}{% endfor %}" in render(CHATML, messages)
    assert messages == [{"role": "user", "content": "{{ raise_exception('ran') }}{% endfor %}"}]


SWITCH = "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{{ enable_thinking }}"


def test_variables_are_what_a_template_takes_from_outside() -> None:
    source = SWITCH + "{% set own = 1 %}{{ own }}{{ namespace() }}{# comment #}{% for m in messages %}{{ m.thinking }}"
    source += "{% endfor %}{{ raise_exception(reason) }}"
    assert ChatTemplate(source, "", "").variables == {"enable_thinking", "messages", "reason"}


@pytest.mark.parametrize(
    ("source", "enable_thinking", "given", "settings"),
    [
        (SWITCH, None, None, {}),
        (SWITCH, False, None, {"enable_thinking": False}),
        (SWITCH, True, {}, {"enable_thinking": True}),
        (SWITCH, True, {"enable_thinking": True}, {"enable_thinking": True}),
        ("{{ thinking }}", False, None, {"thinking": False}),
        ("{{ a }}{{ tools }}", None, {"a": "x", "tools": [{"b": 1.5}, None]}, {"a": "x", "tools": [{"b": 1.5}, None]}),
    ],
)
def test_settings_reach_the_template(
    source: str, enable_thinking: bool | None, given: dict[str, object] | None, settings: dict[str, object]
) -> None:
    assert ChatTemplate(source, "", "").settings(enable_thinking, given) == settings


def test_unset_thinking_is_the_templates_own_default() -> None:
    template = ChatTemplate(SWITCH, "", "")
    settings: list[Any] = [template.settings(value, None) for value in (None, True, False)]
    texts = [template.render(MESSAGES, **each) for each in settings]
    assert texts == ["True", "True", "False"]


CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("enable_thinking", "given", "message"),
    [
        (True, {}, "the chat template of this model has no switch for thinking"),
        (1, {}, "enable_thinking is int"),
        (None, [], "template_kwargs is list"),
        (None, {"b": 1}, "does not use 'b'; it uses a"),
        (None, {"messages": []}, "which the conversation itself defines"),
        (None, {"self": 1}, "which the conversation itself defines"),
        (None, {"range": 1}, "does not use 'range'"),
        (None, {"a b": 1}, "the name 'a b'"),
        (None, {1: 1}, "the name '1'"),
        (None, {"a": object()}, "holds <object"),
        (None, {"a": [{"b": float("nan")}]}, "holds nan"),
        (None, {"a": {1: 1}}, "a key that is int"),
        (None, {"a": b"x"}, "bytes"),
        (None, {"a": CYCLE}, "too large"),
        (None, {"a": ["x" * 600_000] * 2}, "too large"),
        (None, {"a": [0] * 20_000}, "too large"),
        (None, {f"a{number}": 1 for number in range(40)}, "has 40 names"),
    ],
)
def test_settings_that_are_refused(enable_thinking: object, given: object, message: str) -> None:
    template = ChatTemplate("{{ a }}{{ messages }}{{ range(2) }}thinking", "", "")
    with pytest.raises(InputError, match=message):
        template.settings(enable_thinking, given)  # type: ignore[arg-type]


def test_contradicting_switches_are_refused() -> None:
    with pytest.raises(InputError, match="differ"):
        ChatTemplate(SWITCH, "", "").settings(True, {"enable_thinking": False})


def test_reasoning_has_the_older_name_too() -> None:
    messages = [{"role": "assistant", "content": "a", "reasoning_content": "r"}, {"role": "user", "content": "b"}]
    assert render("{% for m in messages %}{{ m.thinking or '-' }}{% endfor %}", messages) == "r-"


def test_the_engine_is_loaded_only_for_rendering() -> None:
    code = (
        "import sys; from subsecond.models.chat_template import ChatTemplate; ChatTemplate('', '', '');"
        "sys.exit('jinja2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
