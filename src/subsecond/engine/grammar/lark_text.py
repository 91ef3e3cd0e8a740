"""Output formats as text in the compiler's dialect of Lark, with free reasoning in front where a model reasons."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.engine.grammar.costs import GrammarLimits
from subsecond.engine.grammar.expressions import lark_expression
from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.engine.grammar.schema_form import read_schema
from subsecond.models.reasoning import MarkerTokenizer, ReasoningMarkers

# Forced texts would be encoded by the tokenizer at each step; without, the model chooses how to spell them.
OPTIONS = '%llguidance {"no_forcing": true}\n'

# White space as people write JSON; without a bound small models go on with it for ever.
WHITE_SPACE = r" ?|\n[ \t]{0,32}"

_GBNF = re.compile(r"^\s*[A-Za-z][\w-]*\s*::=", re.MULTILINE)
_FOREIGN = re.compile(r"%llguidance\b|<\[|@[A-Za-z]")
_TOKEN_BY_ID = re.compile(r"<\[[0-9]+\]>")


@dataclass(frozen=True, slots=True)
class LarkText:
    """A grammar.

    is_gbnf     it is in GBNF form still
    is_own      nobody outside wrote any of it
    unenforced  places of a schema that it does not hold an answer to
    patterns    (place, expression) of a schema's expressions
    """

    text: str
    is_gbnf: bool = False
    is_own: bool = False
    unenforced: tuple[str, ...] = ()
    patterns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """What may stand in front of an answer.

    markers    between which the answer may reason, freely; None where it may not
    terminals  the markers as the grammar writes them
    is_opened  the prompt has opened the reasoning
    has_lead   decoding drops a space in front of the text
    """

    markers: ReasoningMarkers | None = None
    terminals: tuple[str, str] = ("", "")
    is_opened: bool = False
    has_lead: bool = False


def json_rule(schema: Mapping[str, Any]) -> str:
    """The right side of a rule for JSON that is valid under a schema in the compiler's form."""
    options = {"whitespace_pattern": WHITE_SPACE}
    return "%json " + json.dumps({**schema, "x-guidance": options})


def literal(text: str) -> str:
    """A text as a terminal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def lark_of(output: OutputFormat, limits: GrammarLimits) -> LarkText:
    """Return a format as a grammar whose first rule is `start`.

    Raises:
        InputError: it is damaged or larger than the limits.
        UnsupportedError: it uses what is not allowed from outside, or is strict and not to be enforced.
    """
    source = output.source
    max_bytes = {"regex": limits.max_regex_chars, "grammar": limits.max_grammar_bytes}.get(
        output.kind, limits.max_source_bytes
    )
    num_bytes = len(source.encode("utf-8", "surrogatepass"))
    if num_bytes > max_bytes:
        raise InputError(f"the output format ({output.kind}) has {num_bytes} bytes; at most {max_bytes} are allowed")
    if output.kind == "json_object":
        return LarkText(f"start: {json_rule({'type': 'object'})}\n", is_own=True)
    if output.kind == "json_schema":
        read = read_schema(source, is_strict=output.is_strict)
        return LarkText(f"start: {json_rule(read.schema)}\n", unenforced=read.unenforced, patterns=read.patterns)
    if output.kind == "regex":
        return LarkText(f"start: {lark_expression(source)}\n")
    if output.kind == "grammar":
        foreign = _FOREIGN.search(source)
        if foreign is not None:
            raise UnsupportedError(f"the grammar has {foreign[0]!r}, which is not allowed; give plain Lark or GBNF")
        return LarkText(source, is_gbnf=_GBNF.search(source) is not None)
    return LarkText(source, unenforced=output.unenforced)


def framed(lark: str, frame: Frame) -> str:
    """Return the whole grammar of an answer, ready to compile: what may stand in front, then the grammar."""
    if frame.markers is None and not frame.has_lead:
        return OPTIONS + lark
    rules = ['LEAD: " "', "THOUGHT: /(?s:.*)/", r"GAP: /[ \t\r\n]{0,4}/", "answer: @answer"]
    start = "LEAD? answer"
    if frame.markers is not None:
        opening, closing = frame.terminals
        block = f"THOUGHT {closing}"
        if not closing.startswith("<"):
            rules.append(f"thought[lazy]: {block}")
            block = "thought"
        lead = "LEAD?" if frame.has_lead else ""
        start = f"{block} GAP answer" if frame.is_opened else f"{opening} {block} GAP answer | {lead} answer"
    outer = OPTIONS + "\n".join([f"start: {start}", *rules]) + "\n"
    inner = {"name": "answer", "lark_grammar": OPTIONS + lark}
    return json.dumps({"grammars": [{"lark_grammar": outer}, inner]})


def marker_terminal(text: str, tokenizer: MarkerTokenizer) -> str:
    """A marker as the token that it is, else as text."""
    token_id = tokenizer.control_tokens.get(text)
    return literal(text) if token_id is None else f"<[{token_id}]>"


def without_tokens(lark: str) -> str:
    """The grammar ready to compile for a vocabulary of bytes: with a byte in place of each token named by its id."""
    return OPTIONS + _TOKEN_BY_ID.sub(lambda _: r"/\x01/", lark)
