"""Greedy continuations of a candidate checked token by token against the reference's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from subsecond.backends.batch import Int32
from subsecond.backends.protocol import Backend
from subsecond.measure.evaluation import window_batch


@dataclass(frozen=True, slots=True)
class GreedyAgreement:
    """One continuation. While the two agree, both have read the same tokens, so the first difference explains itself.

    num_tokens        tokens that the candidate chose
    first_difference  index of the first token that the reference would not have chosen; None when there is none
    logit_gap         how much higher the reference's own choice stands there than the candidate's, in logits
    """

    num_tokens: int
    first_difference: int | None
    logit_gap: float

    def is_explained(self, near_tie: float) -> bool:
        """Whether they agree, or part at a choice that the reference itself makes by less than `near_tie` logits."""
        return self.first_difference is None or self.logit_gap < near_tie


def greedy_continuation(backend: Backend, prompt_ids: Sequence[int], num_tokens: int) -> Int32:
    """The `num_tokens` most likely tokens one after the other, end-of-text tokens included; lowest id on a tie."""
    ids = np.array([*prompt_ids, *[0] * num_tokens], np.int32)
    num_blocks = -(-len(ids) // backend.block_tokens)
    start = 0
    for end in range(len(prompt_ids), len(ids)):
        ids[end] = int(np.argmax(backend.forward(window_batch(ids, start, end, num_blocks))[-1]))
        start = end
    return ids[len(prompt_ids) :]


def compare_greedy(
    candidate: Backend, reference: Backend, prompt_ids: Sequence[int], num_tokens: int
) -> GreedyAgreement:
    """Continue greedily with `candidate`, then ask `reference` for every one of these choices in one step."""
    chosen = greedy_continuation(candidate, prompt_ids, num_tokens)
    ids = np.concatenate([np.array(prompt_ids, np.int32), chosen])
    num_blocks = -(-len(ids) // reference.block_tokens)
    logits = reference.forward(window_batch(ids, 0, len(ids) - 1, num_blocks))[len(prompt_ids) - 1 :]
    best = logits.argmax(axis=-1)
    differing = np.flatnonzero(best != chosen)
    if differing.size == 0:
        return GreedyAgreement(num_tokens, None, 0.0)
    first = int(differing[0])
    return GreedyAgreement(num_tokens, first, float(logits[first, best[first]] - logits[first, chosen[first]]))
