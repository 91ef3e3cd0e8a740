"""Output formats to constraints on one vocabulary: compiled once, kept in a bounded cache, copied for each answer."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from llguidance import LLMatcher

from subsecond.core.errors import InputError
from subsecond.engine.grammar.compiled_format import CompiledFormat
from subsecond.engine.grammar.costs import GrammarLimits, parser_limits
from subsecond.engine.grammar.expressions import reason_of
from subsecond.engine.grammar.large_stack import with_large_stack
from subsecond.engine.grammar.lark_text import (
    Frame,
    LarkText,
    framed,
    json_rule,
    lark_of,
    marker_terminal,
    without_tokens,
)
from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.engine.grammar.vetter import Vetter, shared_vetter
from subsecond.engine.grammar.vocabulary import GrammarVocabulary, build_vocabulary
from subsecond.models.reasoning import ReasoningMarkers, opens_reasoning
from subsecond.models.tokenizer import Tokenizer

MAX_SEARCH_S = 1.0
"""Longest search for the expression that is wrong in a schema."""


class GrammarCompiler:
    """Compiles formats for the vocabulary of one model; may be used from any thread.

    The first use reads the vocabulary, which takes longer.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, limits: GrammarLimits | None = None, vetter: Vetter | None = None
    ) -> None:
        """Keep the tokenizer; nothing is built before the first `compile`."""
        self._tokenizer = tokenizer
        self._limits = limits or GrammarLimits()
        self._vetter = vetter or shared_vetter(self._limits)
        self._lock = threading.Lock()
        self._vocabulary: GrammarVocabulary | None = None
        self._cache: OrderedDict[tuple[OutputFormat, Frame], CompiledFormat] = OrderedDict()

    def compile(
        self,
        output: OutputFormat,
        *,
        markers: ReasoningMarkers | None = None,
        prompt_ids: Sequence[int] = (),
    ) -> CompiledFormat:
        """Return what makes the constraint of an answer. Takes up to a second: not for an event loop.

        With `markers` of a model that reasons, reasoning at the begin of the answer is free, and the format holds for
        what follows; `prompt_ids` tell whether the prompt has opened or closed the block already.

        Raises:
            InputError: the format is damaged, asks for what cannot be, or costs more than the limits; the text names
                the place.
            UnsupportedError: a schema has keywords that cannot be enforced and is strict.
        """
        frame = self._frame(markers, prompt_ids)
        with self._lock:
            found = self._cache.get((output, frame))
            if found is not None:
                self._keep(output, frame, found)
                return found
        made = self._compile(output, frame)
        with self._lock:
            self._keep(output, frame, made)
        return made

    def _frame(self, markers: ReasoningMarkers | None, prompt_ids: Sequence[int]) -> Frame:
        tokenizer = self._tokenizer
        is_opened = opens_reasoning(prompt_ids, markers, tokenizer) if markers is not None else False
        if markers is None or is_opened is False:
            return Frame(has_lead=tokenizer.strips_first_space)
        terminals = marker_terminal(markers.opening, tokenizer), marker_terminal(markers.closing, tokenizer)
        return Frame(markers, terminals, bool(is_opened), tokenizer.strips_first_space)

    def _compile(self, output: OutputFormat, frame: Frame) -> CompiledFormat:
        lark = lark_of(output, self._limits)
        text = lark.text
        try:
            if not lark.is_own:
                text = self._vetted(lark)
            vocabulary = self._read_vocabulary()
            grammar = framed(text, frame)
            made = CompiledFormat(
                lambda: with_large_stack(lambda: _matcher(vocabulary, grammar)),
                vocabulary,
                num_source_bytes=len(grammar),
                unenforced=lark.unenforced,
            )
        except InputError as error:
            what = "the form of tool calls" if output.kind == "lark" else f"the output format ({output.kind})"
            raise InputError(f"{what} cannot be used: {error}") from None
        return made

    def _vetted(self, lark: LarkText) -> str:
        """The text to compile; InputError, naming the place of an expression if that is what is wrong."""
        try:
            vetted = self._vetter.check(without_tokens(lark.text), is_gbnf=lark.is_gbnf)
        except InputError as error:
            deadline_s = time.monotonic() + MAX_SEARCH_S
            for place, pattern in lark.patterns:
                if time.monotonic() > deadline_s:
                    break
                fault = self._vetter.fault_of(f"start: {json_rule({'type': 'string', 'pattern': pattern})}\n")
                if fault:
                    raise InputError(f"the expression at {place}: {fault}") from None
            raise error from None
        return vetted if lark.is_gbnf else lark.text

    def _read_vocabulary(self) -> GrammarVocabulary:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = build_vocabulary(self._tokenizer)
            return self._vocabulary

    def _keep(self, output: OutputFormat, frame: Frame, made: CompiledFormat) -> None:
        """Keep a compiled format, and drop those that were not asked for longest."""
        self._cache[output, frame] = made
        self._cache.move_to_end((output, frame))
        num_bytes = sum(each.estimated_bytes for each in self._cache.values())
        while len(self._cache) > self._limits.max_cached or num_bytes > self._limits.max_cached_bytes:
            _, dropped = self._cache.popitem(last=False)
            num_bytes -= dropped.estimated_bytes


def _matcher(vocabulary: GrammarVocabulary, grammar: str) -> LLMatcher:
    matcher = LLMatcher(vocabulary.tokens, grammar, log_level=0, limits=parser_limits())
    if matcher.is_error():
        raise InputError(reason_of(matcher.get_error()))
    return matcher
