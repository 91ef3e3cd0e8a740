"""A norm disappears into its linears only when nobody else reads it."""

from __future__ import annotations

import pytest

from subsecond.graph.builder import GraphBuilder
from subsecond.graph.ops import Linear, Norm
from subsecond.graph.passes.fuse_norms import fuse_norms
from tests.unit.tiny_decoder import TINY, kinds, tiny_graph


def test_all_norms_of_a_decoder_are_folded() -> None:
    fused = fuse_norms(tiny_graph())
    assert "Normalize" not in kinds(fused)
    query = next(op for op in fused.ops if op.output == "blk.1.q")
    assert isinstance(query, Linear)
    assert (query.input, query.norm) == ("blk.0.ffn_residual", Norm("blk.1.attn_norm.weight", TINY.norm_eps))
    head = fused.ops[-1]
    assert isinstance(head, Linear)
    assert (head.input, head.norm) == ("selected", Norm("output_norm.weight", TINY.norm_eps))


def test_a_norm_that_an_addition_reads_too_stays() -> None:
    builder = GraphBuilder({"e": (10, 4), "n": (4,), "w": (4, 4)})
    normed = builder.normalize("normed", builder.embed("x", "e", 10, 4), Norm("n", 1e-5))
    graph = builder.build(builder.add("out", normed, builder.linear("y", normed, "w", 4)))
    assert fuse_norms(graph).ops == graph.ops


def test_a_norm_that_is_the_output_stays() -> None:
    builder = GraphBuilder({"e": (10, 4), "n": (4,)})
    graph = builder.build(builder.normalize("normed", builder.embed("x", "e", 10, 4), Norm("n", 1e-5)))
    assert fuse_norms(graph).ops == graph.ops


@pytest.mark.parametrize(
    ("norm", "group"), [(Norm("n", 1e-5, "layer", "b"), None), (Norm("g", 1e-5), 2)], ids=["layer norm", "groups"]
)
def test_other_norms_stay(norm: Norm, group: int | None) -> None:
    builder = GraphBuilder({"e": (10, 4), "n": (4,), "b": (4,), "g": (2,), "w": (4, 4)})
    normed = builder.normalize("normed", builder.embed("x", "e", 10, 4), norm, group)
    graph = builder.build(builder.linear("y", normed, "w", 4))
    assert fuse_norms(graph).ops == graph.ops
