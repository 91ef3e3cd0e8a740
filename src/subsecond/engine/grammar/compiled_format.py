"""A format compiled for one vocabulary, of which each answer gets a copy; the copies share what the lexer finds out."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llguidance import LLMatcher

from subsecond.engine.constraint import Constraint
from subsecond.engine.grammar.held_answer import HeldAnswer
from subsecond.engine.grammar.vocabulary import GrammarVocabulary

# Estimates of memory: of any grammar, for each byte of its text, and for each token that answers took, as every place
# of an answer may add states to the lexer, up to its limit.
BYTES_OF_GRAMMAR = 256 * 1024
BYTES_OF_SOURCE_BYTE = 512
BYTES_OF_TOKEN = 10_000
MAX_COUNTED_TOKENS = 4_000

MIN_TOKENS_TO_RENEW = 2_000
"""Tokens that answers take before a lexer that reached its limit is replaced; one that fills up sooner always would."""


class CompiledFormat:
    """Makes the constraint of an answer each time it is called, within microseconds; safe to call from any thread.

    Its lexer keeps the states that answers lead it to, for all of them. Once they reach the limit no answer can go on
    with it, so that a new one takes its place.

    unenforced  places of a schema that the constraint does not hold an answer to
    """

    def __init__(
        self,
        make: Callable[[], LLMatcher],
        vocabulary: GrammarVocabulary,
        *,
        num_source_bytes: int = 0,
        unenforced: tuple[str, ...] = (),
    ) -> None:
        """Call `make`, whose result must be free of errors, now and whenever the lexer has to be replaced."""
        self.vocabulary = vocabulary
        self.unenforced = unenforced
        self._make = make
        self._matcher = make()
        self._lock = threading.Lock()
        self._generation = 0
        self._num_tokens = 0
        self._num_bytes = BYTES_OF_GRAMMAR + BYTES_OF_SOURCE_BYTE * num_source_bytes

    def __call__(self) -> Constraint:
        """The constraint of one answer."""
        return HeldAnswer(self)

    @property
    def estimated_bytes(self) -> int:
        """Memory that the grammar and the states of its lexer may take by now."""
        return self._num_bytes + BYTES_OF_TOKEN * min(self._num_tokens, MAX_COUNTED_TOKENS)

    def copy(self) -> tuple[LLMatcher, int]:
        """A matcher at the begin of an answer, and the number of the lexer that it shares."""
        with self._lock:
            return self._matcher.deep_copy(), self._generation

    def count_token(self) -> None:
        """Count a token that an answer took."""
        self._num_tokens += 1

    def renewed(self, generation: int) -> tuple[LLMatcher, int] | None:
        """As `copy`, with another lexer than the one of this number; None when it filled up too soon to be replaced."""
        with self._lock:
            if generation == self._generation:
                if self._num_tokens < MIN_TOKENS_TO_RENEW:
                    return None
                self._matcher = self._make()
                self._generation += 1
                self._num_tokens = 0
            return self._matcher.deep_copy(), self._generation
