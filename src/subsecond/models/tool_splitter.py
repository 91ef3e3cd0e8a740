"""Tells tool calls from the text of an answer while both stream; what is no whole call stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum, auto

from subsecond.models.reasoning import MarkerTokenizer
from subsecond.models.tool_calls import ToolCallDelta
from subsecond.models.tool_readers import CallReader, NamedReader, ObjectReader
from subsecond.models.tool_syntax import ToolSyntax

MAX_HELD_CHARS = 2**16
"""Characters in which a call has to give its name."""

_FENCES = ("```json\n", "```\n")
_FENCE_END = "```"

# Halves of surrogate pairs are in no decoded text, so these stand for markers that decoding leaves out.
_STAND_INS = tuple(map(chr, range(0xD800, 0xD810)))
_ANY_STAND_IN = re.compile("[\ud800-\ud80f]")


class _Phase(Enum):
    """Where a stream is: in text, before a call of a list, in a call, or behind one."""

    TEXT = auto()
    CALL = auto()
    BEHIND = auto()


class ToolCallSplitter:
    """Splits one answer, token by token, into text and tool calls; stands behind the splitter of reasoning.

    Text before a call passes at once; what may be the beginning of a call is held back. The name of a call comes once
    it is known to be one of `names`, then its arguments as they come. Anything else is text, and nothing is lost but
    white space around calls. A call that breaks behind its name stays one, its arguments as far as they are JSON.
    """

    def __init__(self, syntax: ToolSyntax, tokenizer: MarkerTokenizer, names: Iterable[str]) -> None:
        """Take the names of the tools that may be called."""
        self._names = frozenset(names)
        self._markers = _hidden_markers(syntax, tokenizer)
        stand_ins = {token_id: mark for token_id, (_, mark) in self._markers.items()}
        self._stand_ins = stand_ins
        self._syntax = _with_stand_ins(syntax, dict(self._markers.values()))
        self._phase = _Phase.TEXT
        self._closing = self._syntax.closing
        self._buffer = ""
        self._candidate = ""
        self._head_length = 0
        self._reader: CallReader | None = None
        self._is_in_list = False
        self._is_behind_call = False
        self._is_bare_possible = syntax.is_bare
        self._num_calls = 0
        self._texts: list[str] = []
        self._deltas: list[ToolCallDelta] = []

    def push(self, token_id: int, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Take a token and the text that is certain with it; return the text and the pieces of calls that follow.

        The token is needed as some vocabularies leave the markers of calls out of decoded text.
        """
        self._buffer += text + self._stand_ins.get(token_id, "")
        return self._split()

    def finish(self, text: str = "") -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Take the last text; return what was held back, now that no more comes."""
        self._buffer += text
        split_text, deltas = self._split()
        held = self._candidate + self._buffer
        self._candidate = self._buffer = ""
        # what is left of an answer that was cut short in the markers around calls
        is_behind = self._is_behind_call or self._phase is _Phase.BEHIND
        if is_behind and any(marker.startswith(held.strip()) for marker in (self._closing, self._syntax.opening)):
            held = ""
        return split_text + _ANY_STAND_IN.sub("", held), deltas

    def _split(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        steps = {_Phase.TEXT: self._step_text, _Phase.CALL: self._step_call, _Phase.BEHIND: self._step_behind}
        while self._buffer and steps[self._phase]():
            pass
        text, deltas = _ANY_STAND_IN.sub("", "".join(self._texts)), tuple(self._deltas)
        self._texts, self._deltas = [], []
        return text, deltas

    def _step_text(self) -> bool:
        """Look for the next call; False when more text has to come first."""
        buffer, opening = self._buffer, self._syntax.opening
        if self._is_bare_possible:
            head_length = self._bare_head_length()
            if head_length is None:
                return False
            if head_length >= 0:
                self._begin(head_length)
                return True
        place = buffer.find(opening)
        if place >= 0:
            start = len(buffer[:place].rstrip())
            self._closing = self._syntax.closing
            self._pass(start)
            self._begin(place - start + len(opening))
            return True
        num_held = next(
            (n for n in range(min(len(buffer), len(opening) - 1), 0, -1) if opening.startswith(buffer[-n:])), 0
        )
        self._pass(len(buffer[: len(buffer) - num_held].rstrip()))
        return False

    def _bare_head_length(self) -> int | None:
        """Characters of the buffer that lead to a call without its opening; None if more text has to tell, -1 if none.

        Such a call may stand in a block of code, as models write JSON.
        """
        buffer, opening = self._buffer, self._syntax.opening
        solid = buffer.lstrip()
        if self._is_behind_call and self._syntax.between.strip():
            solid = solid.removeprefix(self._syntax.between.strip()).lstrip()
        fence = next((fence for fence in _FENCES if solid.startswith(fence)), "")
        inside = solid.removeprefix(fence).lstrip()
        if inside.startswith("{"):
            self._closing = _FENCE_END if fence else self._syntax.closing
            return len(buffer) - len(inside)
        if not inside or any(fence.startswith(solid) for fence in _FENCES):
            return None
        if not opening.startswith(solid):
            self._is_bare_possible = False
        return -1

    def _pass(self, length: int) -> None:
        """Let so much of the buffer go as text."""
        if length:
            self._texts.append(self._buffer[:length])
            self._buffer = self._buffer[length:]
            self._is_behind_call = False

    def _begin(self, head_length: int) -> None:
        """Begin to read what may be a call, `head_length` characters of the buffer being what leads to it."""
        self._candidate, self._buffer = self._buffer[:head_length], self._buffer[head_length:]
        self._head_length = head_length
        self._is_bare_possible = False
        is_named = self._syntax.layout == "named"
        self._reader = (NamedReader if is_named else ObjectReader)(self._syntax, self._names)
        self._phase = _Phase.CALL

    def _step_call(self) -> bool:
        """Read on in a call."""
        reader = self._reader
        assert reader is not None
        for place, character in enumerate(self._buffer):
            if self._opens_list(character):
                self._candidate += character
                self._is_in_list = True
                continue
            was_named = reader.name is not None
            if not reader.push(character) or (not was_named and len(self._candidate) > MAX_HELD_CHARS):
                self._buffer = self._buffer[place:]
                self._give_up(was_named)
                return True
            if not was_named:
                self._candidate += character
            if reader.name is not None:
                self._report(reader, was_named)
            if reader.is_done:
                self._buffer = self._buffer[place + 1 :]
                self._phase = _Phase.BEHIND
                return True
        self._buffer = ""
        return False

    def _opens_list(self, character: str) -> bool:
        if character != "[" or self._syntax.layout != "list" or self._is_in_list:
            return False
        assert self._reader is not None
        return self._reader.name is None and not self._candidate[self._head_length :].strip()

    def _give_up(self, is_begun: bool) -> None:
        """Make text of what turned out to be no call; what stands behind its opening is looked at again."""
        self._phase, self._reader, self._is_in_list = _Phase.TEXT, None, False
        if not is_begun:
            # a bare call has no opening: then its first character is what cannot begin one again
            length = max(self._head_length, 1)
            self._buffer = self._candidate + self._buffer
            self._pass(length)
        self._candidate = ""

    def _report(self, reader: CallReader, was_named: bool) -> None:
        """Say what is new about the call."""
        arguments = "".join(reader.arguments)
        reader.arguments.clear()
        if not was_named:
            self._candidate = ""
            self._deltas.append(ToolCallDelta(self._num_calls, reader.name, arguments))
            self._num_calls += 1
        elif arguments:
            last = self._deltas[-1] if self._deltas else None
            if last is not None and last.index == self._num_calls - 1:
                self._deltas[-1] = replace(last, arguments=last.arguments + arguments)
            else:
                self._deltas.append(ToolCallDelta(self._num_calls - 1, None, arguments))

    def _step_behind(self) -> bool:
        """Take what ends a call, a list of calls, or leads to the next one of the list."""
        solid = self._buffer.lstrip()
        if not solid:
            return False
        if self._is_in_list and solid[0] == ",":
            self._begin(len(self._buffer) - len(solid) + 1)
            return True
        if self._is_in_list and solid[0] == "]":
            self._buffer, self._is_in_list = solid[1:], False
            return True
        closing = self._closing
        if closing and closing.startswith(solid) and closing != solid:
            return False
        if closing and solid.startswith(closing):
            self._buffer = solid[len(closing) :]
        self._phase, self._is_in_list = _Phase.TEXT, False
        self._is_behind_call = True
        self._is_bare_possible = self._syntax.is_bare
        return True


def _hidden_markers(syntax: ToolSyntax, tokenizer: MarkerTokenizer) -> dict[int, tuple[str, str]]:
    """The markers that decoding leaves out, as (text, stand-in) by token id."""
    hidden: dict[int, tuple[str, str]] = {}
    for marker in syntax.markers:
        token_id = tokenizer.control_tokens.get(marker)
        if token_id is not None and tokenizer.is_special(token_id):
            # no model learned the generic syntax, so there the text counts, however it is spelled
            hidden[token_id] = (marker, marker if syntax.is_generic else _STAND_INS[len(hidden)])
    return hidden


def _with_stand_ins(syntax: ToolSyntax, stand_ins: dict[str, str]) -> ToolSyntax:
    names = ("opening", "closing", "separator", "skipped")
    texts = {name: getattr(syntax, name) for name in names}
    return replace(syntax, **{name: stand_ins.get(text, text) for name, text in texts.items()})
