"""The grammar of an answer that has to call tools, or that may but has to do so correctly."""

from __future__ import annotations

from collections.abc import Sequence

from subsecond.core.errors import UnsupportedError
from subsecond.engine.grammar.costs import GrammarLimits
from subsecond.engine.grammar.lark_text import json_rule, lark_of, literal, marker_terminal
from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.engine.grammar.schema_form import formed_schema
from subsecond.models.reasoning import MarkerTokenizer
from subsecond.models.tool_calls import Tool, ToolChoice
from subsecond.models.tool_syntax import ToolSyntax

MAX_CALLS = 16
"""Calls in one answer; without a bound small models go on calling."""

_OPENING_KEYS = frozenset(
    ("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas")
)


def call_format(
    syntax: ToolSyntax,
    tokenizer: MarkerTokenizer,
    tools: Sequence[Tool],
    choice: ToolChoice,
    *,
    is_parallel: bool = True,
    output: OutputFormat | None = None,
) -> OutputFormat | None:
    """Return the format that holds an answer to `choice`; None where it is free.

    "required" and "named" answers are calls alone, one or, if `is_parallel`, several ("named": exactly one). "auto" is
    free unless `output` is given, a tool is strict or calls are not to be parallel: then the answer is what `output`
    says, or free text with calls behind it, or calls. "none" is just `output`.

    Raises:
        InputError: the schema of a tool is damaged.
        UnsupportedError: it is strict and not to be enforced, or `output` is a grammar.
    """
    if choice.mode == "none" or not tools:
        return output
    is_free = choice.mode == "auto"
    if is_free and output is None and is_parallel and not any(tool.is_strict for tool in tools):
        return None
    called = [tool for tool in tools if choice.name in (None, tool.name)]
    writer = _CallWriter(syntax, tokenizer, called)
    max_calls = MAX_CALLS if is_parallel and choice.mode != "named" else 1
    calls = writer.calls(max_calls)
    if not is_free:
        start, rules = calls, []
    elif output is not None:
        if output.kind == "grammar":
            raise UnsupportedError(
                "tools and an answer by a grammar do not go together; give a JSON schema, or no tools"
            )
        inner = lark_of(output, GrammarLimits())
        start, rules = f"{calls} | other", [inner.text.replace("start:", "other:", 1)]
        writer.unenforced += inner.unenforced
    else:
        start, rules = writer.text_then(calls)
    lines = [f"start: {start}", *rules, *writer.rules]
    return OutputFormat("lark", "\n".join(lines) + "\n", unenforced=tuple(writer.unenforced))


class _CallWriter:
    """Writes the rules of calls in one syntax."""

    def __init__(self, syntax: ToolSyntax, tokenizer: MarkerTokenizer, tools: Sequence[Tool]) -> None:
        self.rules: list[str] = []
        self.unenforced: list[str] = []
        self._syntax = syntax
        self._tokenizer = tokenizer
        for index, tool in enumerate(tools):
            self._add(index, tool)
        self.rules.append("call: " + " | ".join(f"call{index}" for index in range(len(tools))))

    def _add(self, index: int, tool: Tool) -> None:
        schema = {"type": "object", **tool.parameters}
        if not _OPENING_KEYS & set(schema):
            # valid under the schema as well, and no model fills in what nobody described
            schema["additionalProperties"] = False
        where = f"the parameters of tool {tool.name!r}"
        formed = formed_schema(schema, is_strict=tool.is_strict, where=where)
        self.unenforced += [f"{tool.name}: {place}" for place in formed.unenforced]
        syntax = self._syntax
        if syntax.layout == "named":
            parts = [literal(tool.name), self._marker(syntax.separator), f"arguments{index}"]
        else:
            head = f'{{"{syntax.name_key}": "{tool.name}", "{syntax.arguments_key}": '
            parts = [literal(head), f"arguments{index}", literal("}")]
        self.rules += [f"call{index}: {' '.join(parts)}", f"arguments{index}: {json_rule(formed.schema)}"]

    def calls(self, max_calls: int) -> str:
        """One call or more, as the right side of a rule."""
        syntax = self._syntax
        if syntax.layout == "list":
            items = f'call ("," " "? call){{0,{max_calls - 1}}}' if max_calls > 1 else "call"
            return " ".join([self._marker(syntax.opening), '" "? "["', items, '"]"', *self._closing()])
        one = self._opened("call")
        if max_calls == 1:
            return one
        between = f"{literal(syntax.between)} " if syntax.between else ""
        return f"{one} ({between}{one}){{0,{max_calls - 1}}}"

    def text_then(self, calls: str) -> tuple[str, list[str]]:
        """Free text with calls behind it, as the right side of a rule and further rules."""
        syntax = self._syntax
        text = "TEXT: /(?s:.*)/"
        if syntax.is_bare and not self._has_opening():
            # an answer that begins with a brace is a call
            return f"{calls} | TEXT |", [r"TEXT: /[^{ \t\r\n](?s:.*)/"]
        opening = self._marker(syntax.opening)
        if opening.startswith("<"):
            return f"TEXT ({calls})?", [text]
        # the opening is text like any other, so free text ends where it stands
        rest = calls.removeprefix(f"{opening} ")
        return f"TEXT | head {rest}", [text, f"head[lazy]: TEXT {opening}"]

    def _opened(self, call: str) -> str:
        syntax = self._syntax
        opening = [self._marker(syntax.opening)] if self._has_opening() else []
        inner_begin = [literal(syntax.inner_begin)] if syntax.inner_begin else []
        inner_end = [literal(syntax.inner_end)] if syntax.inner_end else []
        return " ".join([*opening, *inner_begin, call, *inner_end, *self._closing()])

    def _has_opening(self) -> bool:
        """Whether calls are written with their opening, which means another thing in some syntaxes."""
        return not self._syntax.is_bare or bool(self._syntax.closing)

    def _closing(self) -> list[str]:
        return [self._marker(self._syntax.closing)] if self._syntax.closing else []

    def _marker(self, text: str) -> str:
        return literal(text) if self._syntax.is_generic else marker_terminal(text, self._tokenizer)
