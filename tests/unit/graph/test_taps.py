"""Values in the middle of a graph are kept beside it, which stays as it is."""

from __future__ import annotations

import pytest

from subsecond.core.errors import UnsupportedError
from subsecond.graph.builder import GraphBuilder
from subsecond.graph.memory import ALIGNMENT_FLOATS, plan_memory
from subsecond.graph.ops import SelectRows
from subsecond.graph.passes.pipeline import optimize
from subsecond.graph.taps import plan_taps, residual_values, tap_of, tap_width, tapped
from tests.unit.tiny_decoder import TINY, tiny_graph

RESIDUALS = ("embedding", *(f"blk.{layer}.{part}_residual" for layer in range(2) for part in ("attn", "ffn")))


@pytest.mark.parametrize("is_optimized", [False, True])
def test_the_residual_stream_has_a_value_a_part(is_optimized: bool) -> None:
    graph = tiny_graph()
    assert residual_values(graph) == RESIDUALS
    if is_optimized:
        assert set(RESIDUALS) <= set(optimize(graph).values)


def test_a_graph_without_such_a_stream_is_refused() -> None:
    builder = GraphBuilder({"e": (10, 4), "w": (6, 4)})
    graph = builder.build(builder.linear("y", builder.select_rows("s", builder.embed("x", "e", 10, 4)), "w", 6))
    with pytest.raises(UnsupportedError, match="no residual stream"):
        residual_values(graph)


def test_the_operators_stay_and_the_last_tap_ends_the_graph() -> None:
    graph = optimize(tiny_graph())
    cut = tapped(graph, RESIDUALS[1:4])
    taps = [op for op in cut.ops if isinstance(op, SelectRows)]
    assert [(op.output, op.input) for op in taps] == [(tap_of(name), name) for name in RESIDUALS[1:4]]
    others = [op for op in cut.ops if op not in taps]
    assert tuple(others) == graph.ops[: len(others)]
    assert others[-1].output == RESIDUALS[3] and cut.output == tap_of(RESIDUALS[3])
    assert cut.values[cut.output].rows == "selected"


@pytest.mark.parametrize("name", ["logits", "no such value", "blk.0.attn_norm"])
def test_a_value_that_the_plan_does_not_keep_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"keeps no value '{name}'"):
        tapped(optimize(tiny_graph()), ["embedding", name])


def test_nothing_to_look_at_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="keeps no value"):
        tapped(tiny_graph(), [])


def test_the_copies_lie_side_by_side_behind_everything_else() -> None:
    cut = tapped(optimize(tiny_graph()), RESIDUALS)
    memory, start = plan_taps(cut, RESIDUALS)
    width = tap_width(cut, RESIDUALS)
    assert width % ALIGNMENT_FLOATS == 0 and width >= TINY.width
    assert [memory.offset_by_value[tap_of(name)] for name in RESIDUALS] == [
        start + index * width for index in range(len(RESIDUALS))
    ]
    before = plan_memory(cut)
    assert start == before.selected_width and memory.selected_width == start + len(RESIDUALS) * width
    assert memory.width == before.width
