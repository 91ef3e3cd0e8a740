"""Every family builds its graph from shapes alone and names the tensor that does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.graph.ops import Attention, Linear, Rope
from subsecond.models.families.registry import build_graph
from tests.unit.tiny_decoder import TINY, kinds, tiny_graph, tiny_shapes

ATTENTION = ["Normalize", "Linear", "Linear", "Linear", "Rope", "Rope", "Attention", "Linear", "Add"]
FEED_FORWARD = ["Normalize", "Linear", "Linear", "GatedActivation", "Linear", "Add"]
LAYER = ATTENTION + FEED_FORWARD


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_unfused_decoder(family: str) -> None:
    graph = tiny_graph(family)
    assert kinds(graph) == ["Embed", *LAYER * TINY.num_layers, "SelectRows", "Normalize", "Linear"]
    assert graph.output == "logits"
    assert (graph.values["logits"].width, graph.values["logits"].rows) == (TINY.vocab_size, "selected")
    assert [op.layer for op in graph.ops if isinstance(op, Attention)] == [0, 1]


def test_llama_and_qwen2_differ_by_bias_and_pairing() -> None:
    for family, pairing, bias in (("llama", "interleaved", None), ("qwen2", "half", "blk.0.attn_q.bias")):
        graph = tiny_graph(family)
        query = next(op for op in graph.ops if isinstance(op, Linear))
        rope = next(op for op in graph.ops if isinstance(op, Rope))
        assert query.biases == (bias,)
        assert rope.rotary.pairing == pairing


def test_the_head_is_the_embedding_unless_there_is_another() -> None:
    for is_tied, head in ((True, "token_embd.weight"), (False, "output.weight")):
        last = build_graph(TINY, tiny_shapes(TINY, is_tied=is_tied)).ops[-1]
        assert isinstance(last, Linear)
        assert last.weights == (head,)


def test_frequency_factors_are_used_when_there() -> None:
    shapes = tiny_shapes(TINY) | {"rope_freqs.weight": (TINY.rope_dims // 2,)}
    rope = next(op for op in build_graph(TINY, shapes).ops if isinstance(op, Rope))
    assert rope.rotary.frequency_factors == "rope_freqs.weight"


def test_a_family_with_rotary_positions_needs_channels_to_rotate() -> None:
    config = replace(TINY, rope_dims=0)
    with pytest.raises(FormatError, match="rope_dims is 0 or missing"):
        build_graph(config, tiny_shapes(config))


def test_a_missing_tensor_is_named() -> None:
    shapes = tiny_shapes(TINY)
    del shapes["blk.1.ffn_up.weight"]
    with pytest.raises(FormatError, match=r"no tensor 'blk\.1\.ffn_up\.weight'"):
        build_graph(TINY, shapes)


def test_a_tensor_of_another_shape_is_named() -> None:
    shapes = tiny_shapes(TINY) | {"blk.0.attn_k.weight": (32, 24)}
    with pytest.raises(FormatError, match=r"'blk\.0\.attn_k\.weight' has shape \(32, 24\).*\(16, 24\)"):
        build_graph(TINY, shapes)


def test_a_tensor_that_the_family_does_not_read_is_refused() -> None:
    shapes = tiny_shapes(TINY) | {"blk.0.attn_q_norm.weight": (8,)}
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_q_norm\.weight"):
        build_graph(TINY, shapes)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"nearest known one.*Supported: bert, gemma2"):
        build_graph(replace(TINY, family="mamba"), {})
