"""What earlier parts have lost is given back by the linear that writes to the stream, as far as its input tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from subsecond.compress.correction import OriginalStream, corrected_weight
from subsecond.compress.linear_inputs import input_and_loss, statistics_of, writes_stream
from subsecond.compress.refit import refit_columns
from subsecond.core.errors import InputError
from subsecond.graph.segments import segments
from tests.unit.compress.correlated_inputs import correlated_rows, random_weight
from tests.unit.compress.correlated_inputs import statistics_of as of_rows
from tests.unit.compress.test_walk import tiny_walk
from tests.unit.tiny_decoder import tiny_graph


def test_the_correction_is_least_squares_of_product_and_loss() -> None:
    x, weight = correlated_rows(14, 200), random_weight(5, 14)
    loss = correlated_rows(5, 200, seed=7) + x[:, :5] / 2
    cross = (loss.T.astype(np.float64) @ x / len(x)).astype(np.float32)
    gram = of_rows(x).gram
    target = x.astype(np.float64) @ weight.T + loss
    expected = np.linalg.lstsq(x.astype(np.float64), target, rcond=None)[0].T
    found = corrected_weight(weight, gram, cross, 1.0, damping=1e-8)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)
    half = corrected_weight(weight, gram, cross, 0.5, damping=1e-8)
    np.testing.assert_allclose(half, (weight + found) / 2, rtol=1e-4, atol=1e-4)
    assert np.array_equal(corrected_weight(weight, gram, cross, 0.0), weight)
    # fitting some columns to the corrected weight is fitting them to product and loss
    kept = np.arange(9)
    fitted = refit_columns(found, gram, kept, damping=1e-8).weight
    directly = np.linalg.lstsq(x[:, kept].astype(np.float64), target, rcond=None)[0].T
    np.testing.assert_allclose(fitted, directly, rtol=2e-2, atol=2e-2)


def test_bad_corrections_are_refused() -> None:
    weight, gram = random_weight(3, 4), of_rows(correlated_rows(4)).gram
    with pytest.raises(InputError, match="does not fit"):
        corrected_weight(weight, gram, weight[:2], 0.5)
    with pytest.raises(InputError, match="does not fit"):
        corrected_weight(weight, gram, weight, 1.5)
    with pytest.raises(InputError, match="does not fit"):
        corrected_weight(weight, gram, weight * np.float32(np.nan), 0.5)


def test_linears_that_write_to_the_stream_are_known() -> None:
    parts = {segment.name: segment for segment in segments(tiny_graph())}
    assert writes_stream(parts["blk.0.attn"], "blk.0.attn_output.weight")
    assert writes_stream(parts["blk.1.ffn"], "blk.1.ffn_down.weight")
    assert not writes_stream(parts["blk.0.attn"], "blk.0.attn_q.weight")
    assert not writes_stream(parts["blk.0.ffn"], "blk.0.ffn_up.weight")


def test_the_loss_is_what_the_output_lacks_to_the_original() -> None:
    changed, whole = tiny_walk(), tiny_walk()
    original = OriginalStream(whole.graph, whole.source, whole.windows)
    for visit in changed.visits():
        if visit.segment.name == "blk.0.ffn":
            visit.weights["blk.0.ffn_down.weight"] = visit.weights["blk.0.ffn_down.weight"] / 2
        if visit.segment.name == "blk.1.ffn":
            name = "blk.1.ffn_down.weight"
            statistics, cross = input_and_loss(visit, name, original.after(visit.index))
            assert statistics.gram is not None
            alone = statistics_of(visit, name)
            np.testing.assert_allclose(statistics.gram, alone.gram, rtol=1e-6)  # type: ignore[arg-type]
            outputs = [visit.outputs(rows, step)["blk.1.ffn_residual"] for rows, step in visit.chunks()]
            lost = original.after(visit.index) - torch.cat(outputs)
            assert float(lost.abs().max()) > 1e-3
            before = float(lost.square().mean())
            weight = visit.weights[name].numpy()
            fixed = corrected_weight(weight, statistics.gram, cross, 1.0, damping=1e-6)
            visit.weights[name] = torch.from_numpy(fixed)
            outputs = [visit.outputs(rows, step)["blk.1.ffn_residual"] for rows, step in visit.chunks()]
            after = float((original.after(visit.index) - torch.cat(outputs)).square().mean())
            assert after < 0.7 * before
        elif visit.segment.name == "blk.0.attn":
            _, cross = input_and_loss(visit, "blk.0.attn_output.weight", original.after(visit.index))
            assert not cross.any(), "nothing was changed before"
        visit.advance()
