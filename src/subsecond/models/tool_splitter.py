"""Tells tool calls from the text of an answer while both stream; what is no whole call stays text."""

from __future__ import annotations

from collections.abc import Iterable

from subsecond.models.reasoning import MarkerTokenizer
from subsecond.models.tool_calls import ToolCallDelta
from subsecond.models.tool_syntax import ToolSyntax


class ToolCallSplitter:
    """Splits one answer, token by token, into text and tool calls; stands behind the splitter of reasoning.

    Text before a call passes at once; what may be the beginning of a call is held back. The name of a call comes once
    it is known to be one of `names`, then its arguments as they come. Anything else is text, and nothing is lost.
    """

    def __init__(self, syntax: ToolSyntax, tokenizer: MarkerTokenizer, names: Iterable[str]) -> None:
        """Take the names of the tools that may be called."""

    def push(self, token_id: int, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Take a token and the text that is certain with it; return the text and the pieces of calls that follow.

        The token is needed as some vocabularies leave the markers of calls out of decoded text.
        """
        raise NotImplementedError

    def finish(self, text: str = "") -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Take the last text; return what was held back, now that no more comes."""
        raise NotImplementedError
