"""AWQ keeps the function of the unquantized model, and loses less than rounding the weights as they are."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.compress.awq import AwqOptions, awq, awq_scales, clip_grid, scaled_statistics
from subsecond.compress.methods import quantize
from subsecond.compress.output_error import output_power
from subsecond.compress.rounding import nearest_grid, round_to_nearest
from subsecond.core.errors import InputError
from subsecond.formats.gguf_types import TensorType
from tests.unit.compress.calibration_data import Floats, gram_of, make_inputs, make_weight, output_error, statistics_of


def reference_scales(weights: list[Floats], rows: Floats, num_exponents: int) -> np.ndarray:
    """Lin et al. 2023, section 3.2, with the outputs of the linears themselves, in double precision."""
    inputs = np.abs(rows.astype(np.float64)).mean(axis=0)
    relative = []
    for weight in weights:
        groups = np.abs(weight.astype(np.float64)).reshape(len(weight), -1, 32)
        relative.append((groups / groups.max(axis=-1, keepdims=True)).reshape(weight.shape))
    sizes = np.concatenate(relative).mean(axis=0)
    candidates = [np.ones(len(inputs))]
    for step in range(num_exponents):
        r = step / num_exponents
        scales = inputs**r / (sizes ** (1 - r) + 1e-4)
        candidates.append(scales / np.sqrt(scales.max() * scales.min()))

    def loss(scales: np.ndarray) -> float:
        total = 0.0
        for weight in weights:
            scaled = (weight * scales.astype(np.float32)).astype(np.float32)
            values = round_to_nearest(scaled, nearest_grid(scaled, TensorType.Q4_0)).dequantize()
            total += len(weight) * output_error(weight, values / scales.astype(np.float32), rows)
        return total

    return min(candidates, key=loss)


def test_scales_are_those_of_the_paper() -> None:
    rows, weights = make_inputs(96), [make_weight(24, 96), make_weight(8, 96, seed=5)]
    found = awq_scales(weights, statistics_of(rows), options=AwqOptions(num_exponents=10))
    np.testing.assert_allclose(found, reference_scales(weights, rows, 10), rtol=1e-3)
    assert not np.allclose(found, 1)


@pytest.mark.parametrize("width", [96, 576, 896])
def test_it_loses_less_than_plain_rounding(width: int) -> None:
    rows, weights = make_inputs(width), [make_weight(32, width), make_weight(16, width, seed=5)]
    found = awq(weights, statistics_of(rows))
    for weight, stored in zip(weights, found.stored, strict=True):
        plain = round_to_nearest(weight, nearest_grid(weight, TensorType.Q4_0))
        unscaled = stored.dequantize() / found.scales
        assert output_error(weight, unscaled, rows) < 0.8 * output_error(weight, plain.dequantize(), rows)
    exact = np.sqrt(
        output_error(weights[0], found.stored[0].dequantize() / found.scales, rows)
        / output_error(np.zeros_like(weights[0]), weights[0], rows)
    )
    assert found.reports[0].relative_error == pytest.approx(exact, rel=0.01)


def test_the_scaled_input_has_the_statistics_of_its_rows() -> None:
    rows = make_inputs(64)
    scales = np.random.default_rng(0).uniform(0.3, 3, 64).astype(np.float32)
    found, expected = scaled_statistics(statistics_of(rows), scales), statistics_of(rows / scales)
    for name in ("mean", "mean_square", "mean_abs", "max_abs", "gram"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("has_gram", [True, False])
def test_every_group_is_clipped_where_its_own_outputs_lose_least(has_gram: bool) -> None:
    rows, weight = make_inputs(64), make_weight(12, 64)
    statistics = statistics_of(rows, has_gram=has_gram)
    grid = clip_grid(weight, statistics, TensorType.Q4_0, AwqOptions(num_clips=11))
    full = nearest_grid(weight, TensorType.Q4_0).scales
    gram = gram_of(statistics_of(rows)).astype(np.float64) if has_gram else np.diag(statistics.mean_square)
    for row in range(12):
        for group in range(2):
            part = slice(32 * group, 32 * group + 32)
            w = weight[row, part].astype(np.float64)
            losses = []
            for share in np.linspace(1, 0.5, 11):
                scale = float(np.float16(full[row, group] * share))
                error = np.clip(np.rint(w / scale), -8, 7) * scale - w
                losses.append(error @ gram[part, part] @ error)
            scale = float(grid.scales[row, group])
            error = np.clip(np.rint(w / scale), -8, 7) * scale - w
            assert error @ gram[part, part] @ error <= min(losses) * (1 + 1e-4)


def test_another_rounder_takes_the_scaled_weights() -> None:
    rows, weight = make_inputs(96), make_weight(16, 96)
    found = awq(
        [weight],
        statistics_of(rows),
        rounder=lambda scaled, statistics: quantize(scaled, TensorType.Q4_0, "gptq", statistics)[0],
    )
    with_clips = awq([weight], statistics_of(rows))
    loss = output_error(weight, found.stored[0].dequantize() / found.scales, rows)
    assert loss < output_error(weight, with_clips.stored[0].dequantize() / with_clips.scales, rows)


def test_dead_inputs_and_bad_ones() -> None:
    rows, weight = make_inputs(64), make_weight(8, 64)
    rows[:, 7] = 0
    scales = awq_scales([weight], statistics_of(rows))
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    assert (awq_scales([weight], statistics_of(0 * rows)) == 1).all()
    statistics = scaled_statistics(statistics_of(rows), scales)
    assert output_power(weight * scales, statistics) == pytest.approx(
        output_power(weight, statistics_of(rows)), rel=1e-3
    )
    with pytest.raises(InputError, match="do not belong"):
        awq_scales([weight], statistics_of(make_inputs(32)))
    with pytest.raises(InputError, match="num_exponents"):
        AwqOptions(num_exponents=0)
