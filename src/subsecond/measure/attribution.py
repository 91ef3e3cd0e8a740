"""Which tokens of a prompt an answer rests on, by leaving one out, and whether two backends agree about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from subsecond.backends.batch import ForwardBatch, Int32
from subsecond.backends.protocol import Backend
from subsecond.measure.evaluation import window_batch

Float64 = NDArray[np.float64]
NUM_OCCLUDED = 12  # tokens of a prompt that are left out, one after the other
NUM_COMPARED = 5  # most important ones


def answer_batch(prompt_ids: Sequence[int], answer_ids: Sequence[int], block_tokens: int) -> tuple[ForwardBatch, Int32]:
    """One step whose selected rows predict the tokens of the answer, and these tokens int32 [answer]."""
    ids = np.array([*prompt_ids, *answer_ids], np.int32)
    rows = np.arange(len(prompt_ids) - 1, len(ids) - 1, dtype=np.int32)
    batch = window_batch(ids, 0, len(ids) - 1, -(-len(ids) // block_tokens))
    return replace(batch, logits_rows=rows), ids[len(prompt_ids) :]


def answer_logprob(backend: Backend, prompt_ids: Sequence[int], answer_ids: Sequence[int], start: int = 0) -> float:
    """Natural logarithm of the probability of the answer after the prompt, by steps of at most `max_rows` rows.

    Keys and values of the tokens before `start` are taken from the step before, which had the same tokens there;
    `start` is a place in the prompt.
    """
    ids = np.array([*prompt_ids, *answer_ids], np.int32)
    num_rows, num_blocks = len(ids) - 1, -(-len(ids) // backend.block_tokens)
    total = 0.0
    for begin in range(start, num_rows, backend.max_rows):
        end = min(begin + backend.max_rows, num_rows)
        rows = np.arange(max(begin, len(prompt_ids) - 1), end, dtype=np.int32)
        logits = backend.forward(replace(window_batch(ids, begin, end, num_blocks), logits_rows=rows - begin))
        for row, values in zip(rows, logits, strict=True):
            wide = values.astype(np.float64)
            total += wide[ids[row + 1]] - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    return float(total)


def occlusion(
    backend: Backend, prompt_ids: Sequence[int], answer_ids: Sequence[int], places: Sequence[int], neutral_id: int
) -> list[float]:
    """How much the answer's log-probability falls when the token at each of `places` is replaced by `neutral_id`.

    Above zero: the token speaks for the answer. Zeiler and Fergus 2014, arXiv 1311.2901; Li et al. 2016,
    arXiv 1612.08220.
    """
    whole = answer_logprob(backend, prompt_ids, answer_ids)
    falls = {}
    # the last place first: what comes before a place is then as the whole prompt left it, and need not be run again
    for place in sorted(places, reverse=True):
        occluded = list(prompt_ids)
        occluded[place] = neutral_id
        falls[place] = whole - answer_logprob(backend, occluded, answer_ids, place)
    return [falls[place] for place in places]


def most_important(scores: Sequence[float], limit: int) -> list[int]:
    """Places of the `limit` scores of largest magnitude, in order of the text."""
    order = sorted(range(len(scores)), key=lambda place: -abs(scores[place]))
    return sorted(order[:limit])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation from -1 to 1, ties by their mean rank; None where one side has a single rank."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    centred = [each - each.mean() for each in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return None if norm == 0 else float((centred[0] * centred[1]).sum() / norm)


def top_overlap(first: Sequence[float], second: Sequence[float], limit: int = NUM_COMPARED) -> float:
    """Share of the `limit` largest scores that both have in the same places; of fewer scores all count."""
    count = min(limit, len(first))
    tops = [set(sorted(range(len(values)), key=lambda place: -values[place])[:count]) for values in (first, second)]
    return len(tops[0] & tops[1]) / count


def _ranks(values: Float64) -> Float64:
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    ranks: Float64 = below + (equal + 1) / 2
    return ranks
