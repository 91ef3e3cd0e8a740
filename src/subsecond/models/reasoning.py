"""The reasoning that some models write before an answer, told apart from the answer while both stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

MAX_TAIL_TOKENS = 64
"""Tokens at the end of a prompt in which a marker is looked for; a marker is one token, or one a character at worst."""


class MarkerTokenizer(Protocol):
    """What finding markers needs of a tokenizer."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Token id by the text of the tokens that are markup."""

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out of decoded text."""

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids."""


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """The texts between which a model reasons."""

    opening: str
    closing: str


KNOWN_MARKERS = (
    ReasoningMarkers("<think>", "</think>"),
    ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningMarkers("[THINK]", "[/THINK]"),
)


class _Phase(Enum):
    """Where a stream is.

    OPENED and CLOSED are just behind a marker, where white space is left out; at the BEGINNING a block may open.
    """

    BEGINNING = auto()
    OPENED = auto()
    REASONING = auto()
    CLOSED = auto()
    ANSWER = auto()


def find_markers(control_tokens: Mapping[str, int], template_source: str | None) -> ReasoningMarkers | None:
    """Return the known pair of which vocabulary or chat template mention both halves; None for other models."""
    source = template_source or ""
    for markers in KNOWN_MARKERS:
        if all(text in control_tokens or text in source for text in (markers.opening, markers.closing)):
            return markers
    return None


class ReasoningSplitter:
    """Splits one answer, token by token, into reasoning and text.

    A block counts only at the beginning of an answer; later markers are text like any other. White space around the
    reasoning and before the answer behind it is left out. A block that never closes is reasoning to its end. Without
    `markers` everything is text.
    """

    def __init__(
        self, markers: ReasoningMarkers | None, tokenizer: MarkerTokenizer, prompt_ids: Sequence[int] = ()
    ) -> None:
        """Begin as the prompt ends: a chat template may open the block, or close an empty one, for the model."""
        self._opening = markers.opening if markers else ""
        self._closing = markers.closing if markers else ""
        self._opening_id = _hidden_id(self._opening, tokenizer)
        self._closing_id = _hidden_id(self._closing, tokenizer)
        self._held = ""
        self._phase = _phase_after(prompt_ids, markers, tokenizer) if markers else _Phase.ANSWER
        if self._phase is _Phase.ANSWER:
            self._opening_id = None  # no block can open any more

    def push(self, token_id: int, text: str) -> tuple[str, str]:
        """Take a token and the text it completes; return the reasoning and the text that are certain now."""
        if self._phase is _Phase.ANSWER and self._opening_id is None:
            return "", text
        if token_id == self._opening_id and self._phase in (_Phase.BEGINNING, _Phase.ANSWER):
            answer, self._held = self._held.rstrip(), ""
            self._phase = _Phase.OPENED
            return "", answer
        if token_id == self._closing_id and self._phase in (_Phase.OPENED, _Phase.REASONING):
            reasoning = self._rest_of_reasoning()
            self._close()
            return reasoning, ""
        return self._split(text)

    def finish(self, text: str = "") -> tuple[str, str]:
        """Take the last text; return what is left, now that no more comes."""
        reasoning, answer = self._split(text)
        if self._phase in (_Phase.OPENED, _Phase.REASONING):
            return reasoning + self._rest_of_reasoning(), answer
        held, self._held = self._held, ""
        return reasoning, answer + held

    def _split(self, text: str) -> tuple[str, str]:
        """Go through the phases that the text reaches; what could still be part of a marker is held back."""
        text, self._held = self._held + text, ""
        reasoning = ""
        if self._phase in (_Phase.BEGINNING, _Phase.OPENED):
            text = self._past_opening(text)
        if self._phase is _Phase.REASONING:
            reasoning, text = self._past_closing(text)
        if self._phase is _Phase.CLOSED:
            text = text.lstrip()
            self._phase = _Phase.ANSWER if text else _Phase.CLOSED
        return reasoning, text

    def _past_opening(self, text: str) -> str:
        """Return the text behind the opening marker, or all of it when none comes."""
        stripped = text.lstrip()
        # where the template opened the block, models at times open it again
        while stripped.startswith(self._opening):
            text = stripped = stripped[len(self._opening) :].lstrip()
            self._phase = _Phase.OPENED
        if self._opening.startswith(stripped):
            self._held = text
            return ""
        if self._phase is _Phase.OPENED:
            self._phase = _Phase.REASONING
            return stripped
        self._phase = _Phase.ANSWER
        return text

    def _past_closing(self, text: str) -> tuple[str, str]:
        """Return the reasoning that is certain, and the text behind the closing marker."""
        end = text.find(self._closing)
        if end >= 0:
            self._close()
            return text[:end].rstrip(), text[end + len(self._closing) :]
        lengths = range(min(len(text), len(self._closing) - 1), 0, -1)
        num_held = next((length for length in lengths if self._closing.startswith(text[-length:])), 0)
        reasoning = text[: len(text) - num_held].rstrip()
        self._held = text[len(reasoning) :]
        return reasoning, ""

    def _rest_of_reasoning(self) -> str:
        held, self._held = self._held, ""
        return held.rstrip() if self._phase is _Phase.REASONING else held.strip()

    def _close(self) -> None:
        self._phase = _Phase.CLOSED
        self._opening_id = None


def opens_reasoning(prompt_ids: Sequence[int], markers: ReasoningMarkers, tokenizer: MarkerTokenizer) -> bool | None:
    """Whether an answer to the prompt begins inside of reasoning; None where it may open a block itself."""
    phase = _phase_after(prompt_ids, markers, tokenizer)
    return None if phase is _Phase.BEGINNING else phase is _Phase.OPENED


def split_reasoning(content: str, markers: ReasoningMarkers) -> tuple[str, str] | None:
    """Return reasoning and text of an answer that was kept whole; None when it does not begin with a closed block."""
    stripped = content.lstrip()
    if not stripped.startswith(markers.opening) or markers.closing not in stripped:
        return None
    reasoning, _, text = stripped.removeprefix(markers.opening).partition(markers.closing)
    return reasoning.strip(), text.lstrip()


def _hidden_id(marker: str, tokenizer: MarkerTokenizer) -> int | None:
    """The id of a marker that is left out of decoded text, so that it can only be told by its id."""
    token_id = tokenizer.control_tokens.get(marker)
    return token_id if token_id is not None and tokenizer.is_special(token_id) else None


def _phase_after(prompt_ids: Sequence[int], markers: ReasoningMarkers, tokenizer: MarkerTokenizer) -> _Phase:
    """The phase in which an answer to this prompt begins, by the last thing in it that is not white space."""
    tail = prompt_ids[-MAX_TAIL_TOKENS:]
    opening_id, closing_id = (tokenizer.control_tokens.get(text) for text in (markers.opening, markers.closing))
    if opening_id is None or closing_id is None:
        text = tokenizer.decode(tail, skip_special=False).rstrip()
        is_opened, is_closed = text.endswith(markers.opening), text.endswith(markers.closing)
    else:
        # by id, because the text of a message may spell a marker too
        solid = (each for each in reversed(tail) if tokenizer.decode([each], skip_special=False).strip())
        last = next(solid, None)
        is_opened, is_closed = last == opening_id, last == closing_id
    if is_closed:
        return _Phase.ANSWER
    return _Phase.OPENED if is_opened else _Phase.BEGINNING
