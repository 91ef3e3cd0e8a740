"""Greedy continuations of a candidate checked token by token against the reference's logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Answer with up to `num_tokens` most likely tokens on both, and find where they part.

    The reference reads the candidate's answer in one go, and writes one of its own from the first token on that it
    would not have chosen.
    """
    candidate_ids = _until_stop(greedy_continuation(candidate, prompt_ids, num_tokens).tolist(), stop_ids)
    for first, logits in enumerate(_answer_logits(reference, prompt_ids, candidate_ids)):
        own = int(np.argmax(logits))
        if own != candidate_ids[first]:
            break
    else:
        return AnswerPair(tuple(candidate_ids), tuple(candidate_ids), None, None, None)
    chances = [token_probability(logits, token_id) for token_id in (own, candidate_ids[first])]
    begun = [*candidate_ids[:first], own]
    rest = greedy_continuation(reference, [*prompt_ids, *begun], num_tokens - len(begun)).tolist()
    return AnswerPair(tuple(candidate_ids), tuple(_until_stop([*begun, *rest], stop_ids)), first, *chances)


def _answer_logits(backend: Backend, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Iterator[Float32]:
    """Logits [vocab] before each token of the answer, after the prompt; valid until the next."""
    ids = np.array([*prompt_ids, *answer_ids], np.int32)
    num_rows, num_blocks = len(ids) - 1, -(-len(ids) // backend.block_tokens)
    for start in range(0, num_rows, backend.max_rows):
        end = min(start + backend.max_rows, num_rows)
        rows = np.arange(max(start, len(prompt_ids) - 1), end, dtype=np.int32) - start
        yield from backend.forward(replace(window_batch(ids, start, end, num_blocks), logits_rows=rows))


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
