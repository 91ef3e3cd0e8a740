"""Learned rounding never loses more than it started with, learns what it can, and stores what it learned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from subsecond.compress.autoround import AutoRoundOptions, Loss, learn_rounding
from subsecond.compress.gptq import factorize, gptq, gptq_targets
from subsecond.compress.methods import make_grid
from subsecond.compress.rounding import round_to_nearest
from subsecond.core.errors import InputError
from subsecond.formats.gguf_types import TensorType
from tests.unit.compress.calibration_data import make_inputs, make_weight, output_error, statistics_of

NUM_BATCHES = 4


def two_linears(rows: np.ndarray, weights: Mapping[str, np.ndarray]) -> tuple[Loss, Tensor]:
    """Loss of down(silu(up(x))) against the same with the original weights, and its inputs."""
    x = torch.from_numpy(rows)

    def run(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return torch.nn.functional.silu(x @ tensors["up"].T) @ tensors["down"].T

    target = run({name: torch.from_numpy(weight) for name, weight in weights.items()}, x)
    size = len(x) // NUM_BATCHES

    def loss(tensors: Mapping[str, Tensor], index: int) -> Tensor:
        part = slice(index * size, (index + 1) * size)
        return (run(tensors, x[part]) - target[part]).square().mean()

    return loss, x


@pytest.mark.parametrize("tensor_type", [TensorType.Q4_0, TensorType.Q4_K], ids=lambda t: t.name)
def test_it_loses_less_than_the_grid_it_starts_with(tensor_type: TensorType) -> None:
    rows = make_inputs(256, 256)
    weights = {"up": make_weight(256, 256) * np.float32(5), "down": make_weight(32, 256, seed=2)}
    loss, _ = two_linears(rows, weights)
    grids = {name: make_grid(weight, tensor_type, None) for name, weight in weights.items()}
    found = learn_rounding(weights, grids, loss, NUM_BATCHES, AutoRoundOptions(num_steps=60, num_checks=6))

    def total(tensors: Mapping[str, np.ndarray]) -> float:
        held = {name: torch.from_numpy(value) for name, value in tensors.items()}
        return sum(float(loss(held, index)) for index in range(NUM_BATCHES)) / NUM_BATCHES

    learned = total({name: stored.dequantize() for name, (stored, _) in found.items()})
    plain = total({name: round_to_nearest(weights[name], grid).dequantize() for name, grid in grids.items()})
    assert learned < 0.8 * plain
    note = found["up"][1].notes[0]
    assert f"{learned:.2g}"[:3] in note  # what is reported is what the stored weights give
    assert found["down"][0].type is tensor_type


def test_from_the_targets_of_gptq_it_loses_no_more_than_gptq() -> None:
    rows, weight = make_inputs(64, 512), make_weight(16, 64)
    statistics = statistics_of(rows)
    x, target = torch.from_numpy(rows), torch.from_numpy(rows @ weight.T)
    grid = make_grid(weight, TensorType.Q4_0, statistics)
    factor = factorize(statistics)
    assert factor is not None
    start, targets = gptq_targets(weight, grid, factor)
    rounded, _ = gptq(weight, statistics, grid, factor=factor)
    np.testing.assert_array_equal(round_to_nearest(targets, start).raw, rounded.raw)
    stored, report = learn_rounding(
        {"w": weight},
        {"w": start},
        lambda tensors, index: (x @ tensors["w"].T - target).square().mean() * (1 + 0 * index),
        1,
        AutoRoundOptions(num_steps=20),
        {"w": statistics},
        {"w": targets},
    )["w"]
    error = output_error(weight, stored.dequantize(), rows)
    assert error <= output_error(weight, rounded.dequantize(), rows) * (1 + 1e-6)
    exact = error / output_error(np.zeros_like(weight), weight, rows)
    assert report.relative_error == pytest.approx(np.sqrt(exact), rel=0.01)


def test_without_anything_to_learn_plain_rounding_is_kept() -> None:
    weight = make_weight(4, 32)
    grid = make_grid(weight, TensorType.Q4_0, None)
    found = learn_rounding(
        {"w": weight},
        {"w": grid},
        lambda tensors, index: 1.0 + 0 * tensors["w"].sum() + 0 * index,
        1,
        AutoRoundOptions(num_steps=5, num_checks=1),
    )
    np.testing.assert_array_equal(found["w"][0].raw, round_to_nearest(weight, grid).raw)


def test_the_same_seed_gives_the_same_bytes() -> None:
    rows = make_inputs(64, 128)
    weights = {"up": make_weight(64, 64), "down": make_weight(32, 64)}
    loss, _ = two_linears(rows, weights)
    grids = {name: make_grid(weight, TensorType.Q4_0, None) for name, weight in weights.items()}
    options = AutoRoundOptions(num_steps=10, num_checks=2)
    runs = [learn_rounding(weights, grids, loss, NUM_BATCHES, options) for _ in range(2)]
    for name in weights:
        np.testing.assert_array_equal(runs[0][name][0].raw, runs[1][name][0].raw)


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="num_checks"):
        AutoRoundOptions(num_steps=5, num_checks=6)
    with pytest.raises(InputError, match="at least one batch"):
        learn_rounding({}, {}, lambda *_: torch.zeros(()), 0)
