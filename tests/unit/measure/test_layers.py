"""Divergence of hidden states: formulas, what a layer adds, and which layer is called a finding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from subsecond.backends.batch import Float32, ForwardBatch
from subsecond.core.errors import FormatError
from subsecond.measure.layers import (
    CHUNK_ROWS,
    LayerDivergence,
    divergence,
    layer_findings,
    summarize_layers,
    window_divergence,
)


def test_divergence_of_rows() -> None:
    reference = np.array([[3, 4], [1, 0], [0, 0], [0, 0], [2, 0]], np.float32)
    served = np.array([[3, 4], [0, 1], [0, 0], [1, 0], [-2, 0]], np.float32)
    error, distance = divergence(served, reference)
    np.testing.assert_allclose(error, [0, np.sqrt(2), 0, 1, 2])
    np.testing.assert_allclose(distance, [0, 1, 0, 1, 2])


def test_windows_are_read_in_chunks_and_averaged_over_positions() -> None:
    window = np.arange(CHUNK_ROWS + 44, dtype=np.int32)
    sizes: list[tuple[int, int]] = []

    def values(batch: ForwardBatch, factor: float) -> Mapping[str, Float32]:
        sizes.append((batch.num_rows, batch.block_tables.shape[1]))
        rows = np.stack([batch.positions + 1, batch.token_ids + 1], axis=1).astype(np.float32)
        scale = np.where(batch.positions[:, None] < CHUNK_ROWS, 1, factor)
        return {"a": rows, "b": (rows * scale).astype(np.float32)}

    found = window_divergence(lambda b: values(b, 2.0), lambda b: values(b, 1.0), ["a", "b"], window, 32, 16)
    assert found[0] == pytest.approx((0, 0), abs=1e-12)
    assert found[1][0] == pytest.approx(44 / len(window))
    assert sizes == [(CHUNK_ROWS, 10), (CHUNK_ROWS, 19), (44, 10), (44, 19)]


def test_values_that_are_no_numbers_name_the_part() -> None:
    def values(_: ForwardBatch, last: float) -> Mapping[str, Float32]:
        return {"blk.0.attn_residual": np.ones((2, 2), np.float32), "blk.0.ffn_residual": np.full((2, 2), last, "f4")}

    names, window = ["blk.0.attn_residual", "blk.0.ffn_residual"], np.zeros(2, np.int32)
    with pytest.raises(FormatError, match=r"after blk\.0\.ffn are not all finite"):
        window_divergence(lambda b: values(b, np.nan), lambda b: values(b, 1), names, window, 32, 32)


def test_a_layer_adds_what_it_has_more_than_the_one_before() -> None:
    found = summarize_layers(
        ["embedding", "blk.0.attn_residual"], [[(0.1, 0.01), (0.5, 0.3)], [(0.3, 0.03), (0.1, 0.1)]]
    )
    assert [layer.name for layer in found] == ["embedding", "blk.0.attn"]
    assert [layer.relative_error for layer in found] == pytest.approx([0.2, 0.3])
    assert [layer.cosine_distance for layer in found] == pytest.approx([0.02, 0.2])
    assert [layer.added_error for layer in found] == pytest.approx([0.2, 0.1])


def layers(*added: float) -> list[LayerDivergence]:
    errors = np.cumsum(added).tolist()
    names = [f"blk.{index // 2}.{('attn', 'ffn')[index % 2]}" for index in range(len(added))]
    return [LayerDivergence(*each) for each in zip(names, errors, [0.0] * len(added), added, strict=True)]


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ([0.001, 0.001, 0.3, 0.001], ["the attention of layer 1 (blk.1.attn)"]),
        ([0.001, 0.001, 0.009, 0.001], []),  # nine times the median
        ([0.001, 0.001, 0.04, 0.001], []),  # the error stays small
        ([0.1, 0.1, 0.1, 0.1], []),
        ([0.0, 0.0, 0.0, 0.2], ["the feed-forward part of layer 1 (blk.1.ffn)"]),
        ([0.001, 0.2, 0.001, 0.5, 0.001], ["the feed-forward part of layer 1", "the feed-forward part of layer 0"]),
        ([], []),
    ],
)
def test_a_layer_that_adds_far_more_than_the_median_is_a_finding(added: list[float], named: list[str]) -> None:
    findings = layer_findings(layers(*added))
    assert len(findings) == len(named)
    assert all(text.startswith(name) for text, name in zip(findings, named, strict=True))
