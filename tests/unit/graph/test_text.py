"""The printed graph names every operator and adds up bytes and FLOPs."""

from __future__ import annotations

from subsecond.graph.passes.pipeline import optimize
from subsecond.graph.text import flops_per_position, flops_per_row, graph_text
from tests.unit.tiny_decoder import TINY, tiny_graph


def test_one_line_an_operator() -> None:
    graph = optimize(tiny_graph("qwen2"))
    lines = graph_text(graph).splitlines()
    assert len(lines) == 1 + len(graph.ops) + 1 + 2
    assert "blk.0.attn_q.weight 32x24, blk.0.attn_k.weight 16x24" in lines[2]
    assert "rope half 8, wavelengths up to 6283" in lines[6]


def test_a_tied_weight_counts_once() -> None:
    types = {"token_embd.weight": ("Q8_0", 1000), "output_norm.weight": ("F32", 96)}
    totals = graph_text(tiny_graph(), types).splitlines()[-2]
    assert "1,096 weight bytes, of which a step reads 1,096" in totals


def test_flops_count_products_twice() -> None:
    graph = tiny_graph()
    by_output = {op.output: op for op in graph.ops}
    assert flops_per_row(by_output["blk.0.gate"], graph) == 2 * TINY.ff_width * TINY.width
    assert flops_per_position(by_output["blk.0.attention"]) == 4 * TINY.num_heads * TINY.head_dim


def test_passes_keep_the_flops() -> None:
    before, after = tiny_graph("qwen2"), optimize(tiny_graph("qwen2"))
    folded = {name: sum(flops_per_row(op, graph) for op in graph.ops) for name, graph in (("a", before), ("b", after))}
    norms = sum(flops_per_row(op, before) for op in before.ops if type(op).__name__ == "Normalize")
    assert norms > 0
    assert folded["a"] == folded["b"]
