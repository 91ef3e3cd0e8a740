"""How models write tool calls, as data: one entry for each syntax, found by what a chat template mentions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from subsecond.models.reasoning import MarkerTokenizer


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """One way to write calls.

    opening    what begins a call, or a list of calls
    closing    what ends it; empty where the end of the JSON value does
    layout     "object": one JSON object with name and arguments after each opening; "list": a JSON list of such after
               one opening; "named": after the opening the name, then `separator`, then the arguments as JSON
    is_generic the model was not trained on this syntax as far as its template tells; the prompt explains it
    """

    name: str
    opening: str
    closing: str
    layout: Literal["object", "list", "named"]
    name_key: str = "name"
    arguments_key: str = "arguments"
    separator: str = ""
    is_generic: bool = False


def find_tool_syntax(template_source: str | None, tokenizer: MarkerTokenizer) -> ToolSyntax | None:
    """Return the syntax that a chat template teaches or writes, the generic one if it knows no tools.

    None for a model without a chat template.
    """
    raise NotImplementedError
