"""A turned model is the same function with a head of its own, and models that cannot be turned are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from subsecond.backends.torch import TorchBackend
from subsecond.compress.stage_rotate import HEAD, TABLE, orthogonal, turned, turns_of
from subsecond.core.errors import UnsupportedError
from subsecond.measure.evaluation import window_batch
from subsecond.models.families.registry import build_graph
from tests.unit.compress.test_walk import held, tiny_weights
from tests.unit.tiny_decoder import TINY, tiny_graph, tiny_shapes


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_turned_model_gives_the_same_logits(family: str) -> None:
    config = replace(TINY, family=family, rope_pairing="interleaved" if family == "llama" else "half")
    shapes = tiny_shapes(config)
    graph, source = build_graph(config, shapes), tiny_weights(shapes)
    turns = turns_of(graph)
    matrix = orthogonal(TINY.width, 3)
    arrays = {name: source.dequantize(name) for name in graph.weights}
    for norm in {turn.norm for turn in turns.values() if turn.norm}:
        arrays[norm] = np.ones_like(arrays[norm])
    arrays |= {name: turned(turn, source, matrix) for name, turn in turns.items()}
    assert HEAD in turns and not np.allclose(arrays[HEAD], arrays[TABLE])
    changed = build_graph(config, {name: array.shape for name, array in arrays.items()})
    window = np.arange(16, dtype=np.int32)
    logits = [
        TorchBackend(each, weights, num_blocks=1, block_tokens=16, max_rows=16).forward(window_batch(window, 0, 16, 1))
        for each, weights in ((graph, source), (changed, held(arrays)))
    ]
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    not_turned = {name for name in graph.weights if "attn_q" in name or "ffn_down" in name} - turns.keys()
    assert not not_turned - {name for name in not_turned if name.endswith("q.bias")}


def test_the_matrix_is_orthogonal_and_depends_on_the_seed() -> None:
    matrix = orthogonal(24, 1)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(24), atol=1e-12)
    assert not np.allclose(matrix, orthogonal(24, 2))


def test_a_model_with_layer_norms_is_refused() -> None:
    from subsecond.graph.ops import Norm, Normalize

    graph = tiny_graph()
    ops = [
        replace(op, norm=Norm(op.norm.weight, 1e-5, "layer", op.norm.weight)) if isinstance(op, Normalize) else op
        for op in graph.ops
    ]
    with pytest.raises(UnsupportedError, match="no RMS norm"):
        turns_of(graph.with_ops(ops))
