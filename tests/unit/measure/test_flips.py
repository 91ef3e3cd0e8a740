"""Which positions flipped, how sure the reference was, and where two greedy answers part."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult
from subsecond.measure.agreement import answer_both, greedy_continuation
from subsecond.measure.flips import MAX_WINDOW_FLIPS, find_flips, token_probability, top_tokens


def test_flips_are_ordered_by_how_sure_the_reference_was() -> None:
    reference = np.zeros((5, 4), np.float32)
    reference[[0, 1, 2, 3, 4], [1, 2, 3, 0, 1]] = [1, 3, 2, 4, 9]
    candidate = np.zeros((5, 4), np.float32)
    candidate[[0, 1, 2, 3, 4], [0, 2, 1, 2, 3]] = 5
    count, flips = find_flips(reference, candidate, np.array([0, 1, 2, 3, 1], np.int32))
    # row 1 agrees; the last row predicts nothing of the text
    assert count == 3 and [flip.position for flip in flips] == [3, 2, 0]
    first = flips[0]
    assert (first.next_id, first.reference[0][0], first.candidate[0][0]) == (1, 0, 2)
    assert first.sureness == pytest.approx(np.exp(4) / (np.exp(4) + 3))


def test_no_more_than_the_surest_are_kept() -> None:
    rows = MAX_WINDOW_FLIPS + 20
    reference, candidate = np.zeros((rows + 1, 2), np.float32), np.zeros((rows + 1, 2), np.float32)
    reference[:, 0] = np.arange(1, rows + 2) / 8
    candidate[:, 1] = 1
    count, flips = find_flips(reference, candidate, np.zeros(rows + 1, np.int32))
    assert count == rows
    assert [flip.position for flip in flips] == list(range(rows - 1, 19, -1))


def test_most_likely_tokens_with_ties_and_large_logits() -> None:
    logits = np.array([1000, 1000, 999, -1000], np.float32)
    (a, pa), (b, pb), (c, pc) = top_tokens(logits)
    assert (a, b, c) == (0, 1, 2)
    assert pa == pb == pytest.approx(1 / (2 + np.exp(-1)))
    assert pc == token_probability(logits, 2) == pytest.approx(np.exp(-1) / (2 + np.exp(-1)))


class CountingBackend:
    """Goes on with the next number modulo 10, after `odd_after` with the one after it; reads all in order."""

    vocab_size, block_tokens, num_blocks, max_rows, variant = 10, 4, 8, 3, "fake"

    def __init__(self, odd_after: int | None = None) -> None:
        self.odd_after = odd_after
        self.read: list[int] = []

    def forward(self, batch: ForwardBatch) -> Float32:
        assert batch.num_rows <= self.max_rows
        del self.read[int(batch.positions[0]) :]
        assert len(self.read) == batch.positions[0], "positions are read one after the other"
        self.read += batch.token_ids.tolist()
        logits = np.zeros((len(batch.logits_rows), 10), np.float32)
        for row, logit in zip(batch.logits_rows.tolist(), logits, strict=True):
            token = int(batch.token_ids[row])
            logit[(token + 1 + (self.odd_after == token)) % 10] = 2
        return logits

    def sample(self, batch: SampleBatch) -> SampleResult:
        raise AssertionError(f"greedy answers draw no tokens, but got {batch}")

    def close(self) -> None:
        pass


def test_prompts_longer_than_a_step_are_read_in_several() -> None:
    assert greedy_continuation(CountingBackend(), [1, 2, 3, 4, 5, 6, 7], 3).tolist() == [8, 9, 0]


def test_answers_are_told_apart_at_the_first_other_token() -> None:
    pair = answer_both(CountingBackend(odd_after=4), CountingBackend(), [1, 2], 5, stop_ids=[7])
    assert pair.reference_ids == (3, 4, 5, 6, 7)
    assert pair.candidate_ids == (3, 4, 6, 7)
    assert pair.first_difference == 2
    assert pair.reference_probability == pytest.approx(np.exp(2) / (np.exp(2) + 9))
    assert pair.candidate_probability == pytest.approx(1 / (np.exp(2) + 9))


def test_equal_answers_have_no_difference() -> None:
    pair = answer_both(CountingBackend(), CountingBackend(), [1], 3, stop_ids=[])
    assert pair.candidate_ids == pair.reference_ids == (2, 3, 4)
    assert pair.first_difference is pair.reference_probability is pair.candidate_probability is None
