"""Changes are measured as the whole model would, and estimates become losses by the factors that were measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from subsecond.compress.change_losses import change_losses
from subsecond.compress.gptq import GptqOptions
from subsecond.compress.layer_groups import bits_of, candidate_types, layer_groups
from subsecond.compress.output_error import output_power
from subsecond.compress.sensitivity import (
    Estimate,
    groups_to_measure,
    measure_losses,
    predicted_losses,
    reading_error,
)
from subsecond.compress.walk import Visit, Walk
from subsecond.core.errors import InputError
from subsecond.formats.gguf_types import TensorType
from subsecond.models.weights import HeldWeights, StoredTensor
from tests.unit.compress.calibration_data import make_inputs, make_weight, statistics_of
from tests.unit.compress.small_model import logits_of, mean_kl, small_graph, small_weights, small_windows


def changed_weights(weights: HeldWeights, changes: dict[str, np.ndarray]) -> HeldWeights:
    tensors = {}
    for name, shape in weights.shapes.items():
        value = changes.get(name, weights.dequantize(name))
        tensors[name] = StoredTensor(TensorType.F32, shape, np.ascontiguousarray(value).view(np.uint8).reshape(-1))
    return HeldWeights(tensors)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_groups_are_linears_of_one_input(family: str) -> None:
    groups = layer_groups(small_graph(family))
    assert [group.kind for group in groups[:4]] == [
        "attn_q+attn_k+attn_v", "attn_output", "ffn_gate+ffn_up", "ffn_down",
    ]  # fmt: skip
    assert groups[4].name == "blk.1.attn_q+attn_k+attn_v"
    assert groups[4].num_outputs == 64 + 32 + 32
    assert len(groups) == 8
    assert not any(name.startswith(("output", "token_embd")) for group in groups for name in group.weights)


def test_types_fit_the_width() -> None:
    assert TensorType.Q4_K in candidate_types(1536)
    assert candidate_types(576)[0] is TensorType.Q4_0
    assert candidate_types(40) == (TensorType.F16,)
    assert [bits_of(each) for each in candidate_types(256)] == [4.5, 5.5, 6.5625, 8.5, 16]


def test_changes_are_measured_as_the_whole_model_would() -> None:
    graph = small_graph()
    weights, windows = small_weights(graph), small_windows(3)
    names = {1: ["blk.0.attn_v.weight"], 2: ["blk.0.ffn_down.weight"], 4: ["blk.1.ffn_up.weight", "nothing"]}

    def change(visit: Visit, name: str) -> dict[str, torch.Tensor]:
        return {} if name == "nothing" else {name: visit.weights[name] * 0.7}

    found = change_losses(Walk(graph, weights, windows), names, change)
    assert set(found) == {name for several in names.values() for name in several}
    assert found["nothing"] == pytest.approx(0, abs=1e-7)
    original = logits_of(graph, weights, windows)
    for name in ("blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.1.ffn_up.weight"):
        other = changed_weights(weights, {name: weights.dequantize(name) * np.float32(0.7)})
        expected = mean_kl(original, logits_of(graph, other, windows))
        assert expected > 1e-4
        assert found[name] == pytest.approx(expected, rel=1e-3)


def test_losses_rise_as_bits_fall_and_are_those_of_the_whole_model() -> None:
    graph = small_graph()
    weights = small_weights(graph)
    groups = layer_groups(graph)
    types = (TensorType.Q4_0, TensorType.Q5_0, TensorType.Q8_0)
    options = {group.name: types for group in groups}
    losses = measure_losses(
        graph, weights, small_windows(6), small_windows(2, seed=4), groups, options, 0.25, lambda *_: None
    )
    assert set(losses.expected) == {(group.name, each.name) for group in groups for each in types}
    for group in groups:
        four, five, eight = (losses.expected[group.name, each.name] for each in types)
        assert four > 2 * five > 20 * eight > 0
    assert len(losses.measured) == 4  # one of each kind
    every = measure_losses(
        graph, weights, small_windows(6), small_windows(2, seed=4), groups, options, 1.0, lambda *_: None
    )
    assert len(every.measured) == len(groups)
    for group in groups:
        key = group.name, "Q4_0"
        assert losses.expected[key] == pytest.approx(every.expected[key], rel=2)  # within a factor of three
    assert type(losses).from_json(losses.to_json()) == losses
    compensated = measure_losses(
        graph,
        weights,
        small_windows(6),
        small_windows(2, seed=4),
        groups,
        options,
        1.0,
        lambda *_: None,
        GptqOptions(0.1),
    )
    assert compensated.measured == every.measured
    shares = [compensated.expected[key] / every.expected[key] for key in every.expected if key[1] != "Q8_0"]
    assert 0 < min(shares) < 0.9 and max(shares) <= 1
    assert all(compensated.expected[group.name, "Q8_0"] == every.expected[group.name, "Q8_0"] for group in groups)


def estimates(errors: dict[tuple[str, str], float]) -> dict[tuple[str, str], Estimate]:
    return {key: Estimate(*key, error, error) for key, error in errors.items()}


def test_factors_come_from_the_group_then_its_kind_then_all() -> None:
    groups = layer_groups(small_graph())
    first, second, third = groups[0].name, groups[4].name, groups[1].name
    table = estimates(
        {(name, kind): error for name in (first, second, third) for kind, error in (("a", 2.0), ("b", 1.0))}
    )
    losses = predicted_losses(groups, table, {(first, "a"): 6.0})
    assert losses == {(name, kind): loss for name in (first, second, third) for kind, loss in (("a", 6.0), ("b", 3.0))}
    losses = predicted_losses(groups, table, {(first, "a"): 6.0, (third, "a"): 2.0, (second, "b"): 5.0})
    assert losses[second, "a"] == 10
    assert losses[third, "b"] == 1
    assert predicted_losses(groups, table, {})[first, "a"] == 2.0


def test_layers_near_by_say_how_far_an_error_leads() -> None:
    first = layer_groups(small_graph())[0]
    groups = tuple(replace(first, name=f"blk.{layer}.attn_q", segment=layer) for layer in range(20))
    table = estimates({(group.name, "a"): 1.0 for group in groups})
    measured = {
        (f"blk.{layer}.attn_q", "a"): float(factor) for layer, factor in ((0, 9), (1, 8), (2, 1), (18, 2), (19, 3))
    }
    losses = predicted_losses(groups, table, measured)
    assert losses["blk.3.attn_q", "a"] == 8  # the middle of 1, 8 and 9
    assert losses["blk.16.attn_q", "a"] == 2


def test_groups_of_every_kind_are_measured_all_over_the_layers_and_those_that_lose_most() -> None:
    first = layer_groups(small_graph())[0]
    groups = tuple(
        replace(first, name=f"blk.{layer}.{kind}", segment=layer)
        for layer in range(12)
        for kind in ("attn_q", "ffn_down")
    )
    errors = {(group.name, "a"): 5.0 if group.segment == 7 else 1.0 for group in groups}
    smallest = dict.fromkeys([group.name for group in groups], "a")
    chosen = groups_to_measure(groups, estimates(errors), smallest, 0.25)
    for kind in ("attn_q", "ffn_down"):
        assert [group.segment for group in chosen if group.name.endswith(kind)] == [0, 7, 11]
    one_each = groups_to_measure(groups, estimates(errors), smallest, 0.01)
    assert [group.kind for group in one_each] == ["attn_q", "ffn_down"]
    groups = layer_groups(small_graph())
    smallest = dict.fromkeys([group.name for group in groups], "a")
    errors = {(group.name, "a"): 1.0 for group in groups}
    assert groups_to_measure(groups, estimates(errors), smallest, 1.0) == groups
    with pytest.raises(InputError, match="share is 0"):
        groups_to_measure(groups, estimates(errors), smallest, 0)


@pytest.mark.parametrize(("reading", "relative"), [("int8", 0.012), ("int4", 0.09)])
def test_errors_of_readings_are_of_the_size_that_was_measured(reading: str, relative: float) -> None:
    weight, statistics = make_weight(64, 512), statistics_of(make_inputs(512, 512))
    white = statistics_of(np.random.default_rng(0).normal(size=(4096, 512)).astype(np.float32))
    found = np.sqrt(reading_error(weight, white, reading) / output_power(weight, white))
    assert relative / 1.5 < found < relative * 1.5
    assert reading_error(weight, statistics, reading) > 0
    with pytest.raises(InputError, match="no channel format"):
        reading_error(weight, statistics, "int2")
