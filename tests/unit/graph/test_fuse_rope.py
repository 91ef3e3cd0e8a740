"""Attention rotates by itself when both of its rotations are equal and its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from subsecond.graph.graph import Graph
from subsecond.graph.ops import Attention, Rope, Rotary, Value
from subsecond.graph.passes.fuse_rope import fuse_rope
from tests.unit.tiny_decoder import TINY, kinds, tiny_graph


def rope_count(graph: Graph) -> int:
    return kinds(graph).count("Rope")


def with_rope(graph: Graph, output: str, **changes: Any) -> Graph:
    ops = [replace(op, **changes) if op.output == output and isinstance(op, Rope) else op for op in graph.ops]
    return graph.with_ops(ops)


@pytest.mark.parametrize(("family", "pairing"), [("llama", "interleaved"), ("qwen2", "half")])
def test_attention_takes_both_rotations(family: str, pairing: str) -> None:
    fused = fuse_rope(tiny_graph(family))
    assert rope_count(fused) == 0
    attention = next(op for op in fused.ops if isinstance(op, Attention))
    assert (attention.query, attention.key) == ("blk.0.q", "blk.0.k")
    assert attention.rotary is not None
    assert (attention.rotary.pairing, attention.rotary.dims) == (pairing, TINY.rope_dims)


def test_unequal_rotations_stay() -> None:
    graph = with_rope(tiny_graph(), "blk.0.k_rope", rotary=Rotary((5.0,) * (TINY.rope_dims // 2), "interleaved"))
    assert rope_count(fuse_rope(graph)) == 2


def test_another_head_width_stays() -> None:
    graph = with_rope(with_rope(tiny_graph(), "blk.0.q_rope", head_dim=4), "blk.0.k_rope", head_dim=4)
    assert rope_count(fuse_rope(graph)) == 2


def test_a_rotation_that_another_operator_reads_stays() -> None:
    graph = tiny_graph()
    index = next(i for i, op in enumerate(graph.ops) if op.output == "blk.0.attention")
    extra = Rope("again", "blk.0.q_rope", TINY.head_dim, Rotary((5.0,) * (TINY.rope_dims // 2), "half"))
    ops = (*graph.ops[:index], extra, *graph.ops[index:])
    graph = graph.with_ops(ops, [Value("again", TINY.num_heads * TINY.head_dim)])
    assert rope_count(fuse_rope(graph)) == 3
