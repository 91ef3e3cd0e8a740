"""The constraint of one answer: a matcher that follows it token by token and says what may come next."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from subsecond.core.errors import InputError
from subsecond.engine.grammar.expressions import reason_of

if TYPE_CHECKING:
    from subsecond.backends.batch import UInt32
    from subsecond.engine.grammar.compiled_format import CompiledFormat

MAX_MASK_S = 0.5
MAX_MASK_S_PER_TOKEN = 0.002
"""Processor time that the masks of one answer may take, at all and for each token; real formats take a tenth of it."""


class HeldAnswer:
    """Holds one answer to a compiled format. Masks are made without the interpreter's lock."""

    def __init__(self, origin: CompiledFormat) -> None:
        self._origin = origin
        self._matcher, self._generation = origin.copy()
        self._eos_ids = origin.vocabulary.eos_ids
        self._num_words = (origin.vocabulary.num_tokens + 31) // 32
        self._token_ids: list[int] = []
        self._is_over = False
        self._used_s = 0.0
        self._room_s = MAX_MASK_S

    def fill_mask(self, mask: UInt32) -> None:
        """Write the tokens that may come next into `mask`; once the grammar is complete, those that end an answer.

        Raises InputError when going on takes more than the limits of a step, or the answer has taken too long already.
        """
        if self._is_over or (self._matcher.is_stopped() and not self._matcher.is_error()):
            mask[:] = 0
            for token_id in self._eos_ids:
                mask[token_id // 32] |= 1 << token_id % 32
            return
        mask[self._num_words :] = 0
        own = mask[: self._num_words]
        start_s = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(own.ctypes.data, own.nbytes)
        if self._matcher.is_error() and self._renew():
            self._matcher.unsafe_compute_mask_ptr(own.ctypes.data, own.nbytes)
        self._used_s += time.thread_time() - start_s
        self._room_s += MAX_MASK_S_PER_TOKEN
        self._check()

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen; InputError for one that the grammar does not allow."""
        if token_id in self._eos_ids:
            self._is_over = True
        if self._is_over:
            return
        self._origin.count_token()
        is_taken = self._matcher.consume_token(token_id) or (self._renew() and self._matcher.consume_token(token_id))
        if not is_taken:
            self._check()
        self._token_ids.append(token_id)

    def _renew(self) -> bool:
        """Go on with another lexer where the one that all answers share is full; False if that is not what is wrong."""
        if not self._matcher.get_error().startswith("lexer error"):
            return False
        renewed = self._origin.renewed(self._generation)
        if renewed is None:
            return False
        self._matcher, self._generation = renewed
        return self._matcher.consume_tokens(self._token_ids)

    def _check(self) -> None:
        if self._used_s > self._room_s:
            raise InputError(
                f"the form that was asked for takes too long to follow: {self._used_s:.1f} s so far; make it simpler"
            )
        if self._matcher.is_error():
            reason = reason_of(self._matcher.get_error())
            raise InputError(f"the answer cannot go on in the form that was asked for; make it simpler: {reason}")
