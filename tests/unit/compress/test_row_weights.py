"""Rows count by the stream behind them, but for the inputs of attention."""

from __future__ import annotations

import numpy as np
import torch

from subsecond.compress.row_weights import inputs_of_attention, row_weights, weighted_statistics
from tests.unit.compress.small_model import small_walk


def test_rows_count_by_the_size_of_the_stream_behind_them() -> None:
    walk = small_walk()
    for visit in walk.visits():
        if visit.segment.name == "blk.1.ffn":
            weights = row_weights(visit)
            visit.advance()
            (stream,) = walk.states.values()
            expected = 1 / (stream.astype(np.float64) ** 2).mean(axis=1)
            np.testing.assert_allclose(weights.numpy(), expected / expected.mean(), rtol=1e-4)
            break
        visit.advance()


def test_statistics_are_those_of_the_weighted_rows() -> None:
    walk = small_walk()
    for visit in walk.visits():
        seen: dict[str, list[np.ndarray]] = {}
        visit.observe(lambda name, rows, seen=seen: seen.setdefault(name, []).append(rows.numpy().copy()))  # type: ignore[misc]
        if visit.segment.name == "blk.0.attn":
            weights = row_weights(visit)
            alike = inputs_of_attention(visit)
            assert len(alike) == 1
            for name, found in weighted_statistics(visit, seen, weights, has_gram=True).items():
                rows = np.concatenate(seen[name]).astype(np.float64)
                if name not in alike:
                    rows *= np.sqrt(weights.numpy().astype(np.float64))[:, None]
                assert found.gram is not None
                np.testing.assert_allclose(found.gram, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-5)
                np.testing.assert_allclose(found.mean_square, (rows**2).mean(axis=0), rtol=1e-4)
            (one,) = weighted_statistics(visit, [*alike], weights, has_gram=False)
            assert one in alike
        visit.advance()


def test_streams_of_zeros_count_alike() -> None:
    walk = small_walk()
    visit = next(iter(walk.visits()))
    visit.weights = {name: 0 * value for name, value in visit.weights.items()}
    assert torch.equal(row_weights(visit), torch.ones(walk.windows.size))
