"""Vectors do not depend on how texts share steps, and every pooling takes the rows that it names."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from subsecond.backends.batch import Float32, ForwardBatch, SampleBatch, SampleResult
from subsecond.core.errors import InputError
from subsecond.engine.embedding import embed_sequences
from subsecond.models.config import Pooling


@dataclass
class Hidden:
    """A backend whose hidden row is (token id, position + 1); checks that no blocks are shared."""

    max_rows: int = 8
    num_blocks: int = 6
    block_tokens: int = 2
    vocab_size: int = 2
    variant: str = "fake"
    steps: list[list[int]] = field(default_factory=list)

    def forward(self, batch: ForwardBatch) -> Float32:
        assert batch.num_rows <= self.max_rows
        places = list(zip(batch.row_sequence, batch.positions // self.block_tokens, strict=True))
        blocks = {place: int(batch.block_tables[place]) for place in places}
        assert len(set(blocks.values())) == len(blocks) and max(blocks.values()) < self.num_blocks
        self.steps.append(np.bincount(batch.row_sequence).tolist())
        return np.stack([batch.token_ids, batch.positions + 1], axis=1).astype(np.float32)

    def sample(self, batch: SampleBatch) -> SampleResult:
        raise AssertionError(f"nothing is to be sampled, not even {batch}")

    def close(self) -> None:
        """Nothing to free."""


TEXTS = [[5, 6, 7], [1], [4, 4, 4, 4, 4], [2, 3]]


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [(6, 2), (1, 1), (4, 3), (2.5, 1.5)]),
        ("first", [(5, 1), (1, 1), (4, 1), (2, 1)]),
        ("last", [(7, 3), (1, 1), (4, 5), (3, 2)]),
    ],
)
def test_rows_are_pooled_to_unit_vectors_in_order(pooling: Pooling, expected: list[tuple[float, float]]) -> None:
    backend = Hidden()
    vectors = embed_sequences(backend, TEXTS, pooling)
    wanted = np.array(expected) / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, wanted, rtol=1e-6)
    assert backend.steps == [[1, 2, 3], [5]]


def test_few_blocks_mean_more_steps() -> None:
    backend = Hidden(num_blocks=3)
    np.testing.assert_array_equal(embed_sequences(backend, TEXTS, "last"), embed_sequences(Hidden(), TEXTS, "last"))
    assert backend.steps == [[1, 2], [3], [5]]


@pytest.mark.parametrize("text", [[], [1] * 9])
def test_a_text_that_fits_no_step_is_refused(text: list[int]) -> None:
    with pytest.raises(InputError, match=r"text 1 has [09] tokens.*1 to 8"):
        embed_sequences(Hidden(), [[1], text], "mean")
