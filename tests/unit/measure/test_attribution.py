"""What an answer rests on: leaving tokens out, ranks and overlaps."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult
from subsecond.measure.attribution import (
    answer_batch,
    answer_logprob,
    most_important,
    occlusion,
    rank_correlation,
    top_overlap,
)


class SummingBackend:
    """After tokens with the sum s the logit of token 1 is s, of all others 0."""

    vocab_size, block_tokens, num_blocks, max_rows, variant = 5, 4, 8, 3, "fake"

    def __init__(self) -> None:
        self.read: list[int] = []
        self.starts: list[int] = []

    def forward(self, batch: ForwardBatch) -> Float32:
        assert batch.num_rows <= self.max_rows
        self.starts.append(int(batch.positions[0]))
        del self.read[int(batch.positions[0]) :]
        start = len(self.read)
        self.read += batch.token_ids.tolist()
        logits = np.zeros((len(batch.logits_rows), 5), np.float32)
        for index, row in enumerate(batch.logits_rows):
            logits[index, 1] = sum(self.read[: start + int(row) + 1])
        return logits

    def sample(self, batch: SampleBatch) -> SampleResult:
        raise AssertionError(f"nothing is drawn here, but got {batch}")

    def close(self) -> None:
        pass


def logprob(total: float) -> float:
    return total - float(np.log(np.exp(total) + 4))


def test_log_probability_of_an_answer_in_several_steps() -> None:
    assert answer_logprob(SummingBackend(), [2, 0, 1, 0], [1, 1]) == pytest.approx(logprob(3) + logprob(4))
    assert answer_logprob(SummingBackend(), [2], [1]) == pytest.approx(logprob(2))


def test_leaving_out_what_the_answer_rests_on_costs_most() -> None:
    falls = occlusion(SummingBackend(), [3, 0, 1], [1], [0, 1, 2], neutral_id=0)
    assert falls == pytest.approx([logprob(4) - logprob(1), 0, logprob(4) - logprob(3)])


def test_what_comes_before_a_place_is_not_run_again() -> None:
    backend = SummingBackend()
    falls = occlusion(backend, [3, 0, 1, 2], [1], [3, 0, 2], neutral_id=0)
    assert backend.starts == [0, 3, 3, 2, 0, 3]  # of steps with at most three rows
    assert falls == pytest.approx([logprob(6) - logprob(total) for total in (4, 3, 5)])


def test_the_rows_of_an_answer_predict_its_tokens() -> None:
    batch, targets = answer_batch([7, 8, 9], [1, 2], 4)
    assert batch.token_ids.tolist() == [7, 8, 9, 1]
    assert batch.logits_rows.tolist() == [2, 3]
    assert targets.tolist() == [1, 2]
    assert batch.block_tables.tolist() == [[0, 1]]


def test_most_important_tokens_in_order_of_the_text() -> None:
    assert most_important([0.1, -3, 2, 0, 2.5], 3) == [1, 2, 4]
    assert most_important([1.0], 3) == [0]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 200, 3000], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
        ([1, 1, 2], [1, 1, 5], 1.0),
        ([1, 1, 1], [1, 2, 3], None),
        ([1], [2], None),
    ],
)
def test_rank_correlation(first: list[float], second: list[float], expected: float | None) -> None:
    found = rank_correlation(first, second)
    assert found is None if expected is None else found == pytest.approx(expected)


def test_overlap_of_the_largest() -> None:
    assert top_overlap([5, 4, 3, 2, 1], [5, 4, 1, 2, 3], limit=3) == pytest.approx(2 / 3)
    assert top_overlap([1.0, 2.0], [2.0, 1.0], limit=5) == 1.0
