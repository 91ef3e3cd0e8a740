"""Chat templates: programs from a small grammar of Jinja and from the pieces that attacks are made of."""

from __future__ import annotations

from random import Random

from tests.fuzz import hostile_values, tiny_model
from tests.fuzz.binary_parts import mutate_bytes

_BASES = (
    tiny_model.CHAT_TEMPLATE,
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content ~ eos_token }}{% else %}{{ raise_exception('role ' + m.role) }}"
    "{% endif %}{% endfor %}",
    "{%- macro turn(role, text) -%}<{{ role }}>{{ text|trim }}</{{ role }}>{%- endmacro -%}"
    "{%- set ns = namespace(last=none, n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}"
    "{{ turn(m['role'], m['content']) }}{%- if loop.last -%}{%- set ns.last = m -%}{%- endif -%}{%- endfor -%}"
    "{{ ns.last.content[:3] if ns.last else '' }}{{ {'n': ns.n}|tojson(indent=2) }}",
    "{% set tools = tools or [] %}{% for t in tools|sort(attribute='name') %}{{ t|tojson }}{% endfor %}"
    "{{ messages|map(attribute='content')|join('\\n') }}{{ strftime_now('%Y-%m-%d') }}",
)
_NAMES = ("messages", "tools", "bos_token", "eos_token", "add_generation_prompt", "x", "y", "loop", "ns", "range", "m")
_LITERALS = (
    "0", "1", "-1", "3", "65536", "1000000000", "10**9", "1.5", "1e308", "'a'", "'ab\\n'", "''", "none", "true",
             "[]", "{}", "[1, 2]", "{'a': x}", "range(9)", "range(99999)", "'%d'", "(1, 2)", "not_there")  # fmt: skip
_OPERATORS = ("+", "-", "*", "**", "/", "//", "%", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or", "is")
_FILTERS = (
    "abs", "attr('__class__')", "batch(3)", "capitalize", "center(10**9)", "count", "default(y)", "dictsort", "e",
    "first",
    "filesizeformat", "float", "format(1)", "groupby('role')", "indent(64)", "indent(10**9)", "int", "items",
    "join(',')",
    "join(messages)", "last", "length", "list", "lower", "map('upper')", "map('join', x)", "map(attribute='content')",
    "max", "min", "pprint", "random", "reject('none')", "replace('a', 'aaaaaaaa')", "replace('', x)", "reverse",
    "round(300)",
    "safe", "select('odd')", "selectattr('role')", "slice(3)", "sort", "string", "striptags", "sum", "title", "tojson",
    "tojson(indent=60)", "trim", "truncate(3)", "unique", "upper", "urlize", "wordcount", "wordwrap(1)", "xmlattr",
)  # fmt: skip
_METHODS = (
    ".split('a')", ".split()", ".replace('a', 'b' * 99)", ".join(messages)", ".strip()", ".items()", ".keys()",
    ".get('a')",
    ".append(x)", ".format(x)", ".format_map({})", ".encode()", ".__class__.__mro__", ".__init__.__globals__",
    ".upper()",
    ".zfill(10**9)", ".ljust(10**9)", ".center(10**9)", ".expandtabs(10**9)", ".update({'a': 1})", ".index('a')",
    ".count('')", ".startswith('a')", ".cycle(1, 2)", ".changed(x)", ".translate({})", ".splitlines()", "['content']",
    "[0]", "[::-1]", "[:99]", "[10**30]", "[::0]", "['__class__']", ".mro()", ".role", "()", "(x)", "(*x)", "(**y)",
)  # fmt: skip
SLOW_ATTACKS = (
    "{% for a in range(65536) %}{% for b in range(65536) %}x{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in range(65536) %}{{ (messages * 99)|tojson|length }}{% endfor %}",
    "{% for a in range(65536) %}{% if (messages * 9999)|length == messages * 9999 %}{% endif %}{% endfor %}",
    "{% for a in range(65536) %}{{ ('a' * 99999).split('a')|join|upper }}{% endfor %}",
    "{% set l = range(65536)|list %}{% for a in l %}{{ l|sort|unique|list|length }}{% endfor %}",
)
"""These run into the limit of time, so they are drawn rarely."""
_ATTACKS = (
    "{% set x = 'a' %}{% for i in range(60) %}{% set x = x ~ x %}{% endfor %}{{ x|length }}",
    "{% set ns = namespace(v=['a' * 9999]) %}{% for i in range(9999) %}{% set ns.v = ns.v + ns.v %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 9 ** 9 ** 9 }}", "{{ 'a' * 10 ** 9 }}", "{{ [0] * 10 ** 9 }}", "{{ (messages * 9999)|tojson }}",
    "{{ ('a' * 99999 + 'b').replace('a', 'c' * 99999) }}", "{% include 'x' %}", "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{% block b %}{% endblock %}", "{% call f() %}{% endcall %}", "{% filter upper %}a{% endfilter %}",
    "{% set x %}{{ messages }}{% endset %}{{ x * 9999 }}", "{% with a = 1 %}{{ a }}{% endwith %}",
    "{% raw %}{{{% endraw %}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}", "{% generation %}a{% endgeneration %}", "{{ self }}",
    "{{ caller() }}",
    "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}", "{{ cycler('a') }}", "{{ lipsum(99999) }}",
    "{{ joiner()() }}", "{% set x = {} %}{% set y = {'a': x} %}{{ dict(y, **x) }}", "{{ strftime_now('%9999d' * 99) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__class__ }}", "{{ (messages|attr('__init__')) }}",
    "{% set l = [[]] %}{% for i in range(40) %}{% set l = [l, l] %}{% endfor %}{{ l }}",

    "{% for i in range(65000) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' * 900 }}{% endfor %}",
    "{% break %}", "{% for a in [1] %}{% continue %}{% endfor %}", "{{ messages|sort(attribute='a.b.c.d')|list }}",
    "{{ (range(65000)|list) == (range(65000)|list) }}", "{{ '\\ud800' }}", "{{ 1.e }}", "{#" * 50, "{{" * 300,
    "{%-" * 300,
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "{{ " + "-" * 3000 + "1 }}", "{{ x" + ".a" * 5000 + " }}",
    "{% if x %}" * 120 + "{% endif %}" * 120, "{% for a in x %}" * 30 + "{% endfor %}" * 30,
    "{{ " + "1 + " * 3000 + "1 }}",
    "{{ " + "[" * 200 + "]" * 200 + " }}", "{{ 'a'" + "|upper" * 3000 + " }}", "{{ 1 if x else " * 200,
    "{{ a" * 3000 + "}}" * 3000,
    "\n" * 20000 + "{{ x", " " * 60000 + "{%", "{{ '" + "\\" * 60001 + "' }}", "{{ " + "9" * 10000 + " }}",
    "{{ 1" + "_0" * 30000 + " }}",
)  # fmt: skip


def mutated_template(rng: Random) -> bytes:
    """The source of a template as UTF-8, which may also be no UTF-8."""
    draw = rng.random()
    if draw < 0.35:
        source = "".join(_statement(rng, 3) for _ in range(rng.randrange(1, 6)))
    elif draw < 0.55:
        attacks = SLOW_ATTACKS if rng.random() < 0.01 else _ATTACKS
        source = rng.choice(attacks) + rng.choice(("", rng.choice(attacks)))
    else:
        source = rng.choice(_BASES)
    if draw > 0.5:
        for _ in range(rng.choice((1, 1, 2, 4))):
            source = _changed(source, rng)
    data = source.encode("utf-8", "surrogatepass")
    return mutate_bytes(data, rng) if rng.random() < 0.15 else data


def _changed(source: str, rng: Random) -> str:
    """Put a piece in, take one out, or exchange an expression."""
    if not source:
        return _statement(rng, 2)
    place, end = sorted((rng.randrange(len(source)), rng.randrange(len(source))))
    match rng.randrange(6):
        case 0:
            return source[:place] + source[min(end, place + 12) :]
        case 1:
            return source[:place] + _statement(rng, 2) + source[place:]
        case 2:
            return source[:place] + rng.choice(_ATTACKS) + source[place:]
        case 3:
            return source[:end] + source[place:]
        case 4 if "{{" in source:
            head, _, tail = source.partition("{{")
            return f"{head}{{{{ {_expression(rng, 3)} }}}}{tail.partition('}}')[2]}"
        case _:
            piece = rng.choice(
                (*_OPERATORS, *_METHODS, "|" + rng.choice(_FILTERS), "{{", "}}", "{%", "%}", "-%}", "#}")
            )
            return source[:place] + piece + source[place:]


def _statement(rng: Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(("{{ " + _expression(rng, 3) + " }}", hostile_values.text(rng).decode("utf-8", "replace")))
    inner = "".join(_statement(rng, depth - 1) for _ in range(rng.randrange(3)))
    name, value = rng.choice(("x", "y", "ns", "m")), _expression(rng, 2)
    return rng.choice(
        (
            f"{{% for {name} in {value} %}}{inner}{{% endfor %}}",
            f"{{% for x, y in {value} if x %}}{inner}{{% else %}}{inner}{{% endfor %}}",
            f"{{% if {value} %}}{inner}{{% elif {_expression(rng, 2)} %}}{inner}{{% endif %}}",
            f"{{% set {name} = {value} %}}{inner}",
            f"{{% set {name} %}}{inner}{{% endset %}}",
            f"{{% set {name} = namespace(v={value}) %}}{{% set {name}.v = {value} %}}{inner}",
            f"{{% macro {name}(x, y=1) %}}{inner}{{% endmacro %}}{{{{ {name}({value}) }}}}",
            f"{{% filter {rng.choice(_FILTERS)} %}}{inner}{{% endfilter %}}",
        )
    )


def _expression(rng: Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.25:
        return rng.choice((*_NAMES, *_LITERALS))
    inner = _expression(rng, depth - 1)
    match rng.randrange(7):
        case 0 | 1:
            return f"({inner} {rng.choice(_OPERATORS)} {_expression(rng, depth - 1)})"
        case 2 | 3:
            return f"{inner}|{rng.choice(_FILTERS)}"
        case 4:
            return f"({inner}){rng.choice(_METHODS)}"
        case 5:
            return f"({inner} if {_expression(rng, depth - 1)} else {_expression(rng, depth - 1)})"
        case _:
            return f"[{inner}, {_expression(rng, depth - 1)}]"
