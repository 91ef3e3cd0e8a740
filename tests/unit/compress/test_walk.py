"""A walk computes what the whole graph does, segment by segment, and its statistics are those of the rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from subsecond.backends.torch import TorchBackend
from subsecond.compress.statistics import StatisticsSum
from subsecond.compress.walk import Visit, Walk
from subsecond.core.errors import FormatError
from subsecond.formats.gguf_types import TensorType
from subsecond.graph.segments import segments
from subsecond.measure.evaluation import window_batch
from subsecond.models.families.registry import build_graph
from subsecond.models.weights import HeldWeights, StoredTensor
from tests.unit.tiny_decoder import TINY, tiny_graph, tiny_shapes


def tiny_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> HeldWeights:
    generator = np.random.default_rng(seed)
    arrays = {
        name: generator.normal(1.0 if name.endswith("norm.weight") else 0.0, 0.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return held(arrays)


def held(arrays: dict[str, np.ndarray]) -> HeldWeights:
    raw = {name: array.view(np.uint8).reshape(-1) for name, array in arrays.items()}
    return HeldWeights({name: StoredTensor(TensorType.F32, a.shape, raw[name]) for name, a in arrays.items()})


def tiny_walk(family: str = "llama", num_windows: int = 3) -> Walk:
    config = replace(TINY, family=family, rope_pairing="interleaved" if family == "llama" else "half")
    shapes = tiny_shapes(config)
    windows = np.random.default_rng(1).integers(0, TINY.vocab_size, (num_windows, 16), dtype=np.int32)
    return Walk(build_graph(config, shapes), tiny_weights(shapes), windows)


def test_segments_hold_every_operator_once_and_are_named_after_their_part() -> None:
    graph = tiny_graph()
    found = segments(graph)
    assert [op for segment in found for op in segment.ops] == list(graph.ops)
    assert [segment.name for segment in found] == [
        found[0].name, "blk.0.attn", "blk.0.ffn", "blk.1.attn", "blk.1.ffn", "head",
    ]  # fmt: skip
    assert found[0].inputs == ()
    assert all(len(segment.inputs) == 1 for segment in found[1:])
    assert found[-1].outputs == (graph.output,)
    assert list(found[1].linears.values()) == [
        ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"), ("blk.0.attn_output.weight",),
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_walk_ends_with_the_logits_of_the_graph(family: str) -> None:
    walk = tiny_walk(family)
    for visit in walk.visits():
        if visit.segment.name == "head":
            chunks = [visit.outputs(rows, step)[walk.graph.output] for rows, step in walk.chunks()]
            logits = torch.cat(chunks).reshape(*walk.windows.shape, -1).numpy()
        visit.advance()
    backend = TorchBackend(walk.graph, walk.source, num_blocks=1, block_tokens=16, max_rows=16)
    for window, found in zip(walk.windows, logits, strict=True):
        np.testing.assert_allclose(found, backend.forward(window_batch(window, 0, 16, 1)), rtol=1e-4, atol=1e-5)


def test_a_walk_goes_on_where_it_was_with_the_same_bits() -> None:
    walk = tiny_walk()
    states = []
    for visit in walk.visits():
        states.append(dict(walk.states))
        visit.advance()
    again = tiny_walk()
    for visit in again.visits(3, states[3]):
        found = again.states
        assert {name: value.tobytes() for name, value in found.items()} == {
            name: value.tobytes() for name, value in states[visit.index].items()
        }
        visit.advance()


def test_replaced_weights_change_what_comes_after() -> None:
    outputs = []
    for factor in (1.0, 0.0):
        walk = tiny_walk()
        for visit in walk.visits():
            if visit.segment.name == "blk.0.ffn":
                visit.weights["blk.0.ffn_down.weight"] *= factor
                before = next(iter(walk.states.values())).copy()
            visit.advance()
            if visit.segment.name == "blk.0.ffn":
                outputs.append(next(iter(walk.states.values())))
    assert not np.allclose(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[1], before)


def test_statistics_of_a_visit_are_those_of_the_rows_that_the_linears_read() -> None:
    walk = tiny_walk()
    seen: dict[str, list[np.ndarray]] = {}
    for visit in walk.visits():
        visit.observe(lambda name, rows: seen.setdefault(name, []).append(rows.numpy().copy()))
        for name, found in visit.statistics(has_gram=True).items():
            rows = np.concatenate(seen[name]).astype(np.float64)
            assert found.num_rows == len(rows) == walk.windows.size
            np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(found.mean_square, (rows**2).mean(axis=0), rtol=1e-5)
            np.testing.assert_allclose(found.mean_abs, np.abs(rows).mean(axis=0), rtol=1e-5)
            np.testing.assert_array_equal(found.max_abs, np.abs(rows).max(axis=0).astype(np.float32))
            assert found.gram is not None
            np.testing.assert_allclose(found.gram, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
        visit.advance()
    assert len(seen) == 2 * TINY.num_layers * 2 + 1


def test_rows_that_are_not_finite_are_refused() -> None:
    total = StatisticsSum(2, has_gram=False)
    with pytest.raises(FormatError, match="not finite"):
        total.add(torch.tensor([[1.0, float("nan")]]))


def test_a_damaged_weight_is_named() -> None:
    walk = tiny_walk()
    shapes = tiny_shapes(TINY)
    damaged = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    damaged["blk.0.ffn_up.weight"][3, 5] = np.inf
    walk = Walk(walk.graph, held(damaged), walk.windows)
    with pytest.raises(FormatError, match=r"'blk\.0\.ffn_up\.weight' has values that are not finite"):
        for visit in walk.visits():
            visit.advance()


def outputs_of(walk: Walk, index: int) -> torch.Tensor:
    return walk.live[walk.segments[index].outputs[0]].clone()


def inputs_of_down(visit: Visit, *, is_kept: bool) -> torch.Tensor:
    (value,) = (each for each, names in visit.segment.linears.items() if "blk.0.ffn_down.weight" in names)
    seen: list[torch.Tensor] = []
    visit.observe(lambda _, rows: seen.append(rows.clone()), (value,), is_kept=is_kept)
    return torch.cat(seen)


@pytest.mark.parametrize("changed", ["blk.0.ffn_gate.weight", "blk.0.ffn_down.weight"])
def test_what_is_kept_of_a_run_is_used_only_while_the_weights_before_it_are_the_same(changed: str) -> None:
    kept, plain = tiny_walk(), tiny_walk()
    for walk in (kept, plain):
        for visit in walk.visits():
            if visit.segment.name == "blk.0.ffn":
                first, second = (inputs_of_down(visit, is_kept=walk is kept) for _ in range(2))
                assert torch.equal(first, second)
                visit.weights[changed] = visit.weights[changed] * 1.5
                visit.advance()
                break
            visit.advance()
    assert torch.equal(outputs_of(kept, 2), outputs_of(plain, 2))


def test_a_run_goes_on_from_what_is_kept() -> None:
    walk = tiny_walk()
    for visit in walk.visits():
        if visit.segment.name == "blk.0.ffn":
            visit.observe(lambda *_: None, is_kept=True)
            visit.weights["blk.0.ffn_gate.weight"].zero_()  # changed in place, which a run from the start would see
            visit.advance()
            break
        visit.advance()
    other = tiny_walk()
    for visit in other.visits():
        visit.advance()
        if visit.segment.name == "blk.0.ffn":
            break
    assert torch.equal(outputs_of(walk, 2), outputs_of(other, 2))
