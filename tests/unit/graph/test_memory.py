"""No two values that are alive together share a float, in decoders and in random graphs."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subsecond.graph.graph import Graph
from subsecond.graph.memory import ALIGNMENT_FLOATS, plan_memory
from subsecond.graph.ops import Add, Embed, Linear, Norm, Normalize, Op, SelectRows, Softcap, Split, Value, inputs_of
from subsecond.graph.passes.pipeline import optimize
from tests.unit.tiny_decoder import TINY, tiny_graph


def root_of(graph: Graph) -> dict[str, str]:
    roots = {name: name for name in graph.values}
    for op in graph.ops:
        if isinstance(op, Split):
            roots[op.output] = roots[op.input]
    return roots


def check_no_overlap(graph: Graph) -> None:
    """Run the graph on a model of the arenas that remembers which value each float belongs to."""
    plan = plan_memory(graph)
    roots = root_of(graph)
    arenas = {"all": [""] * plan.width, "selected": [""] * plan.selected_width}
    for op in graph.ops:
        for name in inputs_of(op):
            assert owner(graph, plan.offset_by_value, arenas, roots[name]) == {roots[name]}, f"{name} was overwritten"
        if isinstance(op, Split):
            alias = plan.alias_by_value[op.output]
            assert alias.root == roots[op.output]
            continue
        value, offset = graph.values[op.output], plan.offset_by_value[op.output]
        assert offset % ALIGNMENT_FLOATS == 0
        cells = range(offset, offset + value.width)
        # element by element, an output may lie exactly on what it is made of
        may_lie_on = {Linear: ("residual",), Add: ("left", "right"), Normalize: ("input",), Softcap: ("input",)}
        below = {getattr(op, name) for name in may_lie_on.get(type(op), ())}
        below = {name for name in below if plan.offset_by_value.get(name) == offset}
        assert all(graph.values[name].width == value.width for name in below)
        inputs = {roots[name] for name in inputs_of(op)} - below
        if isinstance(op, Linear):
            inputs.add(roots[op.input])
        assert inputs.isdisjoint(arenas[value.rows][cell] for cell in cells), f"{op.output} lies on its input"
        for cell in cells:
            arenas[value.rows][cell] = op.output
    assert owner(graph, plan.offset_by_value, arenas, roots[graph.output]) == {roots[graph.output]}


def owner(graph: Graph, offsets: object, arenas: dict[str, list[str]], root: str) -> set[str]:
    value, offset = graph.values[root], offsets[root]  # type: ignore[index]
    return set(arenas[value.rows][offset : offset + value.width])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs of linears, element-wise operators and splits over values of a few widths."""
    widths = st.sampled_from([1, 16, 24, 48])
    ops: list[Op] = [Embed("v0", "w")]
    values = {"v0": Value("v0", draw(widths))}
    for index in range(1, draw(st.integers(2, 14))):
        name, source = f"v{index}", draw(st.sampled_from(sorted(values)))
        width, rows = values[source].width, values[source].rows
        kind = draw(st.sampled_from(["linear", "residual", "add", "normalize", "softcap", "split", "select"]))
        if kind == "split" and width > 1:
            start = draw(st.integers(0, width - 1))
            end = draw(st.integers(start + 1, width))
            ops.append(Split(name, source, start, end))
            width = end - start
        elif kind == "select" and rows == "all":
            ops.append(SelectRows(name, source))
            rows = "selected"
        elif kind == "add":
            twins = sorted(v.name for v in values.values() if (v.width, v.rows) == (width, rows))
            ops.append(Add(name, source, draw(st.sampled_from(twins))))
        elif kind == "normalize":
            ops.append(Normalize(name, source, Norm("w", 1e-5)))
        elif kind == "softcap":
            ops.append(Softcap(name, source, 2.0))
        else:
            peers = sorted(v.name for v in values.values() if v.rows == rows)
            residual = draw(st.sampled_from(peers)) if kind == "residual" else None
            width = values[residual].width if residual else draw(widths)
            ops.append(Linear(name, source, ("w",), (None,), residual=residual))
        values[name] = Value(name, width, rows)
    graph = Graph(tuple(ops), MappingProxyType(values), {"w": (1, 1)}, draw(st.sampled_from(sorted(values))))
    graph.check()
    return graph


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_random_graphs(graph: Graph) -> None:
    check_no_overlap(graph)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_decoders(family: str) -> None:
    check_no_overlap(tiny_graph(family))
    check_no_overlap(optimize(tiny_graph(family)))


def test_the_residual_stream_stays_in_one_place() -> None:
    plan = plan_memory(optimize(tiny_graph()))
    stream = ["embedding", *(f"blk.{i}.{part}_residual" for i in range(TINY.num_layers) for part in ("attn", "ffn"))]
    assert len({plan.offset_by_value[name] for name in stream}) == 1


def test_capped_logits_lie_on_the_uncapped_ones() -> None:
    ops = (Embed("x", "w"), Linear("uncapped", "x", ("w",), (None,)), Softcap("logits", "uncapped", 30.0))
    values = {"x": Value("x", 16), "uncapped": Value("uncapped", 320), "logits": Value("logits", 320)}
    assert plan_memory(Graph(ops, values, {"w": (1, 1)}, "logits")).width == 16 + 320


def test_layers_reuse_the_same_floats() -> None:
    plan = plan_memory(optimize(tiny_graph()))
    largest_step = 32 + 64 + 48  # the stream, the merged q/k/v and the attention's output beside it
    assert plan.width <= largest_step
    assert plan.selected_width <= 32 + 64


def test_an_alias_of_an_alias_starts_at_the_sum() -> None:
    ops = (Embed("v0", "w"), Split("v1", "v0", 4, 20), Split("v2", "v1", 3, 8))
    values = {"v0": Value("v0", 24), "v1": Value("v1", 16), "v2": Value("v2", 5)}
    alias = plan_memory(Graph(ops, values, {"w": (1, 24)}, "v2")).alias_by_value["v2"]
    assert (alias.root, alias.start) == ("v0", 7)
