"""Gates and residuals join their linear when it is read once, and a linear takes one of the two."""

from __future__ import annotations

from subsecond.graph.builder import GraphBuilder
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Linear
from subsecond.graph.passes.fuse_epilogues import fuse_epilogues
from subsecond.graph.passes.merge_linears import merge_linears
from tests.unit.tiny_decoder import kinds, tiny_graph

SHAPES = {"e": (10, 4), "g": (6, 4), "u": (6, 4), "w": (4, 4)}


def swapped_gate_graph() -> Graph:
    """up stands before gate in the merged linear."""
    builder = GraphBuilder(SHAPES)
    x = builder.embed("x", "e", 10, 4)
    up, gate = builder.linear("up", x, "u", 6), builder.linear("gate", x, "g", 6)
    return merge_linears(builder.build(builder.gated_activation("out", gate, up, "silu")))


def test_a_decoder_keeps_neither_additions_nor_activations() -> None:
    fused = fuse_epilogues(merge_linears(tiny_graph()))
    assert {"Add", "GatedActivation"}.isdisjoint(kinds(fused))
    by_output = {op.output: op for op in fused.ops if isinstance(op, Linear)}
    gated = by_output["blk.0.gated"]
    assert gated.weights == ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")
    assert gated.gated == "silu"
    assert by_output["blk.0.attn_residual"].residual == "embedding"
    assert by_output["blk.0.ffn_residual"].residual == "blk.0.attn_residual"


def test_gate_and_up_keep_their_roles_whatever_their_order_in_the_graph() -> None:
    fused = fuse_epilogues(swapped_gate_graph())
    linear = fused.ops[-1]
    assert isinstance(linear, Linear)
    assert linear.weights == ("g", "u")


def test_unmerged_gates_stay() -> None:
    assert kinds(fuse_epilogues(tiny_graph())).count("GatedActivation") == kinds(tiny_graph()).count("GatedActivation")


def test_a_linear_that_is_read_twice_stays() -> None:
    builder = GraphBuilder(SHAPES)
    x = builder.embed("x", "e", 10, 4)
    y = builder.linear("y", x, "w", 4)
    graph = builder.build(builder.add("out", builder.add("z", x, y), y))
    assert fuse_epilogues(graph).ops == graph.ops


def test_a_linear_added_to_itself_stays() -> None:
    builder = GraphBuilder(SHAPES)
    y = builder.linear("y", builder.embed("x", "e", 10, 4), "w", 4)
    graph = builder.build(builder.add("out", y, y))
    assert fuse_epilogues(graph).ops == graph.ops


def test_of_two_linears_the_right_one_takes_the_other_as_residual() -> None:
    builder = GraphBuilder(SHAPES)
    x = builder.embed("x", "e", 10, 4)
    left, right = builder.linear("left", x, "w", 4), builder.linear("right", x, "w", 4)
    fused = fuse_epilogues(builder.build(builder.add("out", left, right)))
    assert [op.output for op in fused.ops] == ["x", "left", "out"]
    last = fused.ops[-1]
    assert isinstance(last, Linear)
    assert last.residual == "left"
