"""Linears of one input become one; nothing else is touched."""

from __future__ import annotations

from dataclasses import replace

from subsecond.graph.builder import GraphBuilder
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Linear, Norm, Split
from subsecond.graph.passes.merge_linears import merge_linears
from tests.unit.tiny_decoder import TINY, kinds, tiny_graph


def gated_graph(*, same_input: bool) -> Graph:
    builder = GraphBuilder({"e": (10, 4), "n": (4,), "g": (6, 4), "u": (6, 4)})
    x = builder.embed("x", "e", 10, 4)
    other = x if same_input else builder.normalize("other", x, Norm("n", 1e-5))
    gate = builder.linear("gate", x, "g", 6)
    up = builder.linear("up", other, "u", 6)
    return builder.build(builder.gated_activation("out", gate, up, "silu"))


def test_query_key_value_become_one_linear_with_three_splits() -> None:
    merged = merge_linears(tiny_graph("qwen2"))
    linear = next(op for op in merged.ops if isinstance(op, Linear))
    assert linear.weights == tuple(f"blk.0.attn_{name}.weight" for name in "qkv")
    assert linear.biases == tuple(f"blk.0.attn_{name}.bias" for name in "qkv")
    splits = [op for op in merged.ops if isinstance(op, Split) and op.input == linear.output]
    q, kv = TINY.num_heads * TINY.head_dim, TINY.num_kv_heads * TINY.head_dim
    assert [(s.output, s.start, s.end) for s in splits] == [
        ("blk.0.q", 0, q),
        ("blk.0.k", q, q + kv),
        ("blk.0.v", q + kv, q + 2 * kv),
    ]
    assert merged.values[linear.output].width == q + 2 * kv


def test_every_layer_keeps_four_linears() -> None:
    before, after = tiny_graph(), merge_linears(tiny_graph())
    assert kinds(before).count("Linear") == 7 * TINY.num_layers + 1
    assert kinds(after).count("Linear") == 4 * TINY.num_layers + 1
    assert kinds(after).count("Split") == 5 * TINY.num_layers


def test_linears_of_different_inputs_stay_apart() -> None:
    assert kinds(merge_linears(gated_graph(same_input=True))) == [
        "Embed",
        "Linear",
        "Split",
        "Split",
        "GatedActivation",
    ]
    apart = gated_graph(same_input=False)
    assert merge_linears(apart).ops == apart.ops


def test_a_linear_with_an_epilogue_is_not_merged() -> None:
    graph = gated_graph(same_input=True)
    ops = [replace(op, gated="silu") if op.output == "gate" and isinstance(op, Linear) else op for op in graph.ops]
    assert merge_linears(graph.with_ops(ops)).ops == tuple(ops)


def test_merging_twice_changes_nothing_more() -> None:
    once = merge_linears(tiny_graph())
    assert merge_linears(once).ops == once.ops
