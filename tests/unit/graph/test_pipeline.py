"""All passes together leave seven operators a layer, and each pass can be stopped after."""

from __future__ import annotations

import pytest

from subsecond.core.errors import InputError
from subsecond.graph.ops import Attention, Linear
from subsecond.graph.passes.pipeline import PASSES, optimize, passes_until
from subsecond.graph.plan import compile_plan
from tests.unit.tiny_decoder import TINY, kinds, tiny_graph

LAYER = ["Linear", "Split", "Split", "Split", "Attention", "Linear", "Linear", "Linear"]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_optimized_decoder(family: str) -> None:
    graph = optimize(tiny_graph(family))
    assert kinds(graph) == ["Embed", *LAYER * TINY.num_layers, "SelectRows", "Linear"]
    qkv, _, _, _, attention, output, gated, down = graph.ops[1 : 1 + len(LAYER)]
    assert isinstance(qkv, Linear) and qkv.norm and len(qkv.weights) == 3 and not qkv.residual
    assert isinstance(attention, Attention) and attention.rotary
    assert isinstance(output, Linear) and output.residual and not output.norm
    assert isinstance(gated, Linear) and gated.norm and gated.gated == "silu" and not gated.residual
    assert isinstance(down, Linear) and down.residual and not down.norm


def test_every_pass_shortens_the_graph_or_merges() -> None:
    graphs = [passes_until(tiny_graph(), name) for name in ("none", *(name for name, _ in PASSES))]
    assert len({graph.ops for graph in graphs}) == len(PASSES) + 1
    assert graphs[0].ops == tiny_graph().ops
    assert graphs[-1].ops == optimize(tiny_graph()).ops


def test_no_pass_loses_a_weight() -> None:
    from subsecond.graph.ops import weights_of

    def read(ops: object) -> list[str]:
        return sorted(name for op in ops for name in weights_of(op))  # type: ignore[attr-defined]

    assert set(read(optimize(tiny_graph("qwen2")).ops)) == set(read(tiny_graph("qwen2").ops))


def test_an_unknown_pass_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="merge_linears"):
        passes_until(tiny_graph(), "fuse_everything")


def test_a_plan_has_one_native_segment() -> None:
    (segment,) = compile_plan(tiny_graph()).segments
    assert (segment.backend, segment.device) == ("native", "cpu")
    assert segment.graph.ops == optimize(tiny_graph()).ops
    assert segment.memory.selected_width >= TINY.vocab_size
