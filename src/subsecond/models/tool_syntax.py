"""How models write tool calls, as data: one entry for each syntax, found by what a chat template mentions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from subsecond.models.reasoning import MarkerTokenizer


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """One way to write calls.

    evidence       texts that tell the syntax, all of them in the chat template
    tokens         control tokens that tell it, all of them in the vocabulary
    exclusions     texts that tell another syntax if the chat template has one of them
    layout         "object": one JSON object with name and arguments after each opening; "list": a JSON list of such
                   after one opening; "named": after the opening the name, then `separator`, then the arguments as JSON
    opening        what begins a call, or the list of calls
    closing        what ends it; empty where the end of the JSON value does
    inner_begin    what stands between the opening and JSON, and `inner_end` between JSON and the closing
    between        what stands between two calls, openings included in none
    name_key       key of the name; others than the model was trained on are not read
    arguments_key  key of the arguments; the others of ARGUMENTS_KEYS are read too
    skipped        a marker whose text, up to `separator`, is no part of the name
    is_bare        an answer that begins with such an object is a call too, without the opening
    is_generic     the template does not teach calls, so the prompt explains this syntax in its own words
    """

    name: str
    layout: Literal["object", "list", "named"]
    opening: str
    closing: str = ""
    evidence: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    exclusions: tuple[str, ...] = ()
    inner_begin: str = ""
    inner_end: str = ""
    between: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    separator: str = ""
    skipped: str = ""
    is_bare: bool = False
    is_generic: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts that vocabularies may have as single tokens."""
        return tuple(text for text in (self.opening, self.closing, self.separator, self.skipped) if text)


ARGUMENTS_KEYS = ("arguments", "parameters")

# The more telling ones first, since some mention what others are told by.
KNOWN_SYNTAXES = (
    ToolSyntax(
        "named", "named", "[TOOL_CALLS]", evidence=("[TOOL_CALLS]", "[ARGS]"), separator="[ARGS]", skipped="[CALL_ID]"
    ),
    ToolSyntax("bracketed list", "list", "[TOOL_CALLS]", evidence=("[TOOL_CALLS]",)),
    ToolSyntax(
        "action list",
        "list",
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        evidence=("<|START_ACTION|>", "<|END_ACTION|>", "tool_name"),
        name_key="tool_name",
        arguments_key="parameters",
    ),
    ToolSyntax("closed list", "list", "<|tool_call|>", "<|/tool_call|>", evidence=("<|tool_call|>", "<|/tool_call|>")),
    ToolSyntax("open list", "list", "<|tool_call|>", evidence=("<|tool_call|>",)),
    ToolSyntax(
        "tagged",
        "object",
        "<tool_call>",
        "</tool_call>",
        evidence=("<tool_call>", "</tool_call>", "arguments"),
        exclusions=("<function=", "<arg_key>", "<parameter="),
        inner_begin="\n",
        inner_end="\n",
        between="\n",
        is_bare=True,
    ),
    ToolSyntax(
        "bare object",
        "object",
        "<|python_tag|>",
        evidence=('"parameters": ',),
        tokens=("<|python_tag|>",),
        between="; ",
        arguments_key="parameters",
        is_bare=True,
    ),
)

GENERIC_SYNTAX = ToolSyntax(
    "generic",
    "object",
    "<tool_call>",
    "</tool_call>",
    inner_begin="\n",
    inner_end="\n",
    between="\n",
    is_bare=True,
    is_generic=True,
)


def find_tool_syntax(template_source: str | None, tokenizer: MarkerTokenizer) -> ToolSyntax | None:
    """Return the known syntax that a chat template tells, else the generic one; None without a chat template."""
    if template_source is None:
        return None
    for syntax in KNOWN_SYNTAXES:
        has_evidence = all(text in template_source for text in ("tools", *syntax.evidence))
        has_tokens = all(text in tokenizer.control_tokens for text in syntax.tokens)
        if has_evidence and has_tokens and not any(text in template_source for text in syntax.exclusions):
            return syntax
    return GENERIC_SYNTAX
