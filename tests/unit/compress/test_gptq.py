"""GPTQ against the published algorithm, column by column in double precision, and what it promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from subsecond.compress import methods
from subsecond.compress import output_error as output_errors
from subsecond.compress.gptq import BLOCK, GptqOptions, factorize, gptq
from subsecond.compress.methods import Method, make_grid, quantize, quantize_rows
from subsecond.compress.output_error import relative_output_error
from subsecond.compress.rounding import Grid, plain_grid, round_to_nearest
from subsecond.compress.statistics import InputStatistics
from subsecond.core.errors import InputError
from subsecond.formats.gguf_types import TensorType
from tests.unit.compress.calibration_data import Floats, gram_of, make_inputs, make_weight, output_error, statistics_of


def published_gptq(weight: Floats, gram: Floats, grid: Grid, damping: float) -> np.ndarray:
    """Frantar et al. 2022, algorithm 1, with static groups and activation order; values float64 [out, in]."""
    hessian = gram.astype(np.float64)
    order = np.argsort(-np.diag(gram), kind="stable")
    hessian = hessian[order][:, order] + damping * np.diag(hessian).mean() * np.eye(len(gram))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left = weight.astype(np.float64)[:, order]
    values = np.zeros_like(left)
    form = grid.format
    for j, column in enumerate(order):
        group = column // form.group_size
        scale = grid.scales[:, group].astype(np.float64)
        offset = 0.0 if grid.offsets is None else grid.offsets[:, group].astype(np.float64)
        codes = np.clip(np.rint((left[:, j] - offset) / np.where(scale == 0, np.inf, scale)), form.low, form.high)
        values[:, j] = codes * scale + offset
        error = (left[:, j] - values[:, j]) / upper[j, j]
        left[:, j:] -= np.outer(error, upper[j, j:])
    result = np.empty_like(values)
    result[:, order] = values
    return result


@pytest.mark.parametrize("tensor_type", [TensorType.Q4_0, TensorType.Q4_K, TensorType.Q6_K], ids=lambda t: t.name)
def test_it_is_the_published_algorithm(tensor_type: TensorType) -> None:
    width = 256
    assert width > BLOCK  # so that errors pass from block to block
    rows, weight = make_inputs(width), make_weight(48, width)
    statistics = statistics_of(rows)
    grid = make_grid(weight, tensor_type, statistics)
    stored, _ = gptq(weight, statistics, grid, GptqOptions(num_sweeps=0))
    expected = published_gptq(weight, gram_of(statistics), grid, 0.01)
    # a tie that rounds the other way in single precision changes what follows in that row
    is_alike = np.isclose(stored.dequantize(), expected, atol=1e-6).all(axis=1)
    assert is_alike.mean() >= 0.9
    assert output_error(weight, stored.dequantize(), rows) == pytest.approx(
        output_error(weight, expected, rows), rel=0.02
    )


@pytest.mark.parametrize("width", [576, 896, 1536])
@pytest.mark.parametrize("num_sweeps", [0, 2])
def test_it_loses_less_than_plain_rounding(width: int, num_sweeps: int) -> None:
    rows, weight = make_inputs(width), make_weight(32, width)
    statistics = statistics_of(rows)
    tensor_type = TensorType.Q4_K if width % 256 == 0 else TensorType.Q4_0
    grid = make_grid(weight, tensor_type, statistics)
    stored, found = gptq(weight, statistics, grid, GptqOptions(num_sweeps=num_sweeps))
    plain = round_to_nearest(weight, grid)
    assert stored.raw.size == plain.raw.size
    loss, plain_loss = (output_error(weight, each.dequantize(), rows) for each in (stored, plain))
    assert loss < 0.6 * plain_loss
    scale = np.sqrt((rows.astype(np.float64) @ weight.T.astype(np.float64)) ** 2).mean()
    assert 0 < found.relative_error < 1
    assert found.relative_error == pytest.approx(
        np.sqrt(loss / output_error(np.zeros_like(weight), weight, rows)), rel=0.01
    )
    assert scale > 0


def test_what_is_left_of_an_error_is_known_before() -> None:
    alike = make_inputs(96)
    apart = np.random.default_rng(2).standard_normal((2048, 96)).astype(np.float32)
    for rows, low, high in ((alike, 0.0, 0.7), (apart, 0.8, 1.0)):
        weight, statistics = make_weight(64, 96), statistics_of(rows)
        grid = make_grid(weight, TensorType.Q4_0, statistics)
        factor = factorize(statistics)
        assert factor is not None
        rounded = round_to_nearest(weight, grid).dequantize()
        made = gptq(weight, statistics, grid, GptqOptions(num_sweeps=0), factor)[0].dequantize()
        left = factor.share_left(rounded - weight)
        assert low < left <= high
        assert left == pytest.approx(output_error(weight, made, rows) / output_error(weight, rounded, rows), rel=0.15)


def test_every_sweep_lowers_the_error() -> None:
    rows, weight = make_inputs(288), make_weight(32, 288)
    statistics = statistics_of(rows)
    grid = make_grid(weight, TensorType.Q4_0, statistics)
    damped = gram_of(statistics).astype(np.float64) + 0.01 * np.diag(gram_of(statistics)).mean() * np.eye(288)
    losses = []
    for num_sweeps in range(4):
        stored, _ = gptq(weight, statistics, grid, GptqOptions(num_sweeps=num_sweeps))
        error = stored.dequantize().astype(np.float64) - weight
        losses.append(np.trace(error @ damped @ error.T))
    assert losses[0] > losses[1] > losses[2] >= losses[3] * (1 - 1e-6)


def test_the_order_of_inputs_does_not_matter() -> None:
    """Whole groups of inputs, and inputs within them, change places: so do the codes, and nothing else."""
    width = 192
    rows, weight = make_inputs(width), make_weight(24, width)
    generator = np.random.default_rng(3)
    order = np.concatenate([32 * group + generator.permutation(32) for group in generator.permutation(width // 32)])
    statistics, moved = statistics_of(rows), statistics_of(rows[:, order])
    # of the same numbers, not only of the same rows
    moved = replace(moved, gram=np.ascontiguousarray(gram_of(statistics)[order][:, order]))
    grid = make_grid(weight, TensorType.Q4_0, statistics)
    moved_grid = plain_grid(TensorType.Q4_0, grid.scales[:, order[::32] // 32])
    first, _ = gptq(weight, statistics, grid)
    second, _ = gptq(np.ascontiguousarray(weight[:, order]), moved, moved_grid)
    np.testing.assert_array_equal(first.dequantize()[:, order], second.dequantize())


def test_rows_do_not_depend_on_each_other() -> None:
    rows, weight = make_inputs(96), make_weight(40, 96)
    statistics = statistics_of(rows)
    factor = factorize(statistics)
    grid = make_grid(weight, TensorType.Q4_0, statistics)
    whole, _ = gptq(weight, statistics, grid, factor=factor)
    part, _ = gptq(weight[10:20].copy(), statistics, grid.rows(10, 20), factor=factor)
    is_alike = np.isclose(whole.dequantize()[10:20], part.dequantize()).all(axis=1)
    assert is_alike.mean() >= 0.9  # sums of other sizes may break ties otherwise


@pytest.mark.parametrize(("tensor_type", "method"), [("Q8_0", "nearest"), ("Q5_0", "search"), ("Q5_0", "gptq")])
def test_slices_of_rows_are_the_rows(monkeypatch: pytest.MonkeyPatch, tensor_type: str, method: Method) -> None:
    monkeypatch.setattr(methods, "SLICE_ROWS", 24)
    monkeypatch.setattr(output_errors, "REPORTED_ROWS", 20)
    rows, weight = make_inputs(96), make_weight(50, 96)
    statistics = statistics_of(rows)
    stored, report = quantize_rows(weight, TensorType[tensor_type], method, statistics)
    whole, of_whole = quantize(weight, TensorType[tensor_type], method, statistics)
    assert (stored.type, stored.shape, report.method) == (whole.type, whole.shape, of_whole.method)
    is_alike = np.isclose(stored.dequantize(), whole.dequantize()).all(axis=1)
    assert is_alike.mean() >= 0.9  # sums of other sizes may break ties otherwise
    every_third = relative_output_error(weight[::3], stored.dequantize()[::3], statistics)
    assert report.relative_error == pytest.approx(every_third, rel=1e-5)


def test_the_same_call_gives_the_same_bytes() -> None:
    rows, weight = make_inputs(256), make_weight(64, 256)
    statistics = statistics_of(rows)
    stored = [quantize(weight, TensorType.Q4_K, "gptq", statistics)[0] for _ in range(2)]
    np.testing.assert_array_equal(stored[0].raw, stored[1].raw)


def test_dead_inputs_are_rounded_to_the_nearest() -> None:
    rows, weight = make_inputs(64), make_weight(16, 64)
    rows[:, [3, 40]] = 0
    statistics = statistics_of(rows)
    grid = make_grid(weight, TensorType.Q4_0, statistics)
    stored, found = gptq(weight, statistics, grid, GptqOptions(num_sweeps=0))
    plain = round_to_nearest(weight, grid)
    np.testing.assert_array_equal(stored.dequantize()[:, [3, 40]], plain.dequantize()[:, [3, 40]])
    assert (stored.dequantize() != plain.dequantize()).any()
    assert not found.notes


def test_inputs_never_seen_fall_back_to_plain_rounding_and_say_so() -> None:
    weight = make_weight(16, 64)
    statistics = statistics_of(np.zeros((8, 64), np.float32))
    grid = make_grid(weight, TensorType.Q4_0, statistics)
    stored, found = gptq(weight, statistics, grid)
    np.testing.assert_array_equal(stored.raw, round_to_nearest(weight, grid).raw)
    assert "rounded to nearest" in found.notes[0]


def test_a_matrix_that_is_not_positive_definite_is_damped_more_and_noted() -> None:
    weight, statistics = make_weight(16, 64), statistics_of(make_inputs(64))
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    values = np.ones(64)
    values[0] = -0.05  # more than a hundredth of the mean below 0
    gram = ((vectors * values) @ vectors.T).astype(np.float32)
    _, found = gptq(weight, replace(statistics, gram=gram), make_grid(weight, TensorType.Q4_0, statistics))
    assert "damped by 0.1 " in found.notes[0]
    values[0] = -1e4
    gram = ((vectors * values) @ vectors.T).astype(np.float32)
    gram -= np.diag(np.diag(gram)) - np.eye(64, dtype=np.float32)  # a positive diagonal that hides it
    _, found = gptq(weight, replace(statistics, gram=gram), make_grid(weight, TensorType.Q4_0, statistics))
    assert "could not be factorized" in found.notes[0]


def test_bad_input_is_refused() -> None:
    weight, statistics = make_weight(4, 64), statistics_of(make_inputs(64))
    grid = make_grid(weight, TensorType.Q4_0, statistics)
    with pytest.raises(InputError, match="needs the Gram matrix"):
        gptq(weight, replace(statistics, gram=None), grid)
    with pytest.raises(InputError, match="holds inf, nan"):
        gptq(weight, replace(statistics, gram=gram_of(statistics) * np.float32(np.nan)), grid)
    with pytest.raises(InputError, match="do not belong"):
        gptq(weight, statistics_of(make_inputs(32)), grid)
    with pytest.raises(InputError, match="inf or nan"):
        gptq(weight * np.nan, statistics, grid)
    with pytest.raises(InputError, match="damping"):
        GptqOptions(damping=0)
    with pytest.raises(InputError, match="without calibration text use hqq"):
        quantize(weight, TensorType.Q4_0, "gptq")


def test_relative_errors_are_those_of_outputs() -> None:
    rows, weight = make_inputs(64), make_weight(8, 64)
    other = weight + make_weight(8, 64, seed=9) * np.float32(0.1)
    exact = np.sqrt(output_error(weight, other, rows) / output_error(np.zeros_like(weight), weight, rows))
    statistics = statistics_of(rows)
    assert relative_output_error(weight, other, statistics) == pytest.approx(exact, rel=1e-3)
    diagonal: InputStatistics = replace(statistics, gram=np.diag(statistics.mean_square))
    without = replace(statistics, gram=None)
    assert relative_output_error(weight, other, without) == pytest.approx(
        relative_output_error(weight, other, diagonal), rel=1e-4
    )
    assert relative_output_error(weight, 2 * weight, None) == pytest.approx(1)
    assert relative_output_error(0 * weight, 0 * weight, statistics) == 0
    assert relative_output_error(0 * weight, weight, statistics) == np.inf
