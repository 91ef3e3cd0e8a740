"""Greedy continuations of a candidate checked token by token against the reference's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from subsecond.backends.batch import Float32, Int32
from subsecond.backends.protocol import Backend
from subsecond.measure.evaluation import window_batch
from subsecond.measure.flips import token_probability


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
        while end - start > backend.max_rows:
            backend.forward(window_batch(ids, start, start + backend.max_rows, num_blocks))
            start += backend.max_rows
        ids[end] = int(np.argmax(backend.forward(window_batch(ids, start, end, num_blocks))[-1]))
        start = end
    return ids[len(prompt_ids) :]


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Greedy answers of both to one prompt, each up to and with the token that ended it.

    first_difference       index of the first token that differs; None when the answers are equal
    reference_probability  that the reference gave to its own token there, after what both had written so far
    candidate_probability  that the reference gave to the candidate's token there
    """

    candidate_ids: tuple[int, ...]
    reference_ids: tuple[int, ...]
    first_difference: int | None
    reference_probability: float | None
    candidate_probability: float | None


def answer_both(
    candidate: Backend, reference: Backend, prompt_ids: Sequence[int], num_tokens: int, stop_ids: Sequence[int]
) -> AnswerPair:
    """Answer with up to `num_tokens` most likely tokens on both, and find where they part."""
    answers = [
        _until_stop(greedy_continuation(backend, prompt_ids, num_tokens).tolist(), stop_ids)
        for backend in (candidate, reference)
    ]
    candidate_ids, reference_ids = answers
    pairs = zip(candidate_ids, reference_ids, strict=False)
    first = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
    if first is None:  # greedy answers that agree so far end at the same token
        return AnswerPair(tuple(candidate_ids), tuple(reference_ids), None, None, None)
    logits = last_logits(reference, [*prompt_ids, *reference_ids[:first]])
    chances = [token_probability(logits, ids[first]) for ids in (reference_ids, candidate_ids)]
    return AnswerPair(tuple(candidate_ids), tuple(reference_ids), first, *chances)


def last_logits(backend: Backend, token_ids: Sequence[int]) -> Float32:
    """Logits [vocab] after the last of `token_ids`; valid until the next step."""
    ids = np.array(token_ids, np.int32)
    num_blocks = -(-len(ids) // backend.block_tokens)
    starts = range(0, len(ids), backend.max_rows)
    for start in starts:
        end = min(start + backend.max_rows, len(ids))
        rows = np.array([end - start - 1], np.int32)
        logits = backend.forward(replace(window_batch(ids, start, end, num_blocks), logits_rows=rows))
    last: Float32 = logits[-1]
    return last


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((index for index, token_id in enumerate(ids) if token_id in stop_ids), len(ids))
    return ids[: end + 1]


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
