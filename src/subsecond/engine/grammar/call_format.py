"""The grammar of an answer that has to call tools, or that may but has to do so correctly."""

from __future__ import annotations

from collections.abc import Sequence

from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.models.reasoning import MarkerTokenizer
from subsecond.models.tool_calls import Tool, ToolChoice
from subsecond.models.tool_syntax import ToolSyntax


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
    free unless `output` is given or a tool is strict: then the answer is free text, or what `output` says, or calls.
    "none" is just `output`.
    """
    raise NotImplementedError
