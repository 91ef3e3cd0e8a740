"""Grids hold exactly what their stored blocks decode to, and rounding finds the nearest value."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.compress.methods import make_grid, quantize
from subsecond.compress.rounding import (
    GRID_FORMATS,
    check_weight,
    nearest_grid,
    pack_fields,
    plain_grid,
    round_to_nearest,
)
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.formats.gguf_types import TensorType, quantize_q8_0
from tests.unit.compress.calibration_data import make_weight

ALL_TYPES = tuple(GRID_FORMATS)


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
def test_stored_blocks_decode_to_the_values_of_the_grid(tensor_type: TensorType) -> None:
    weight = make_weight(5, 512)
    grid = make_grid(weight, tensor_type, None)
    form = grid.format
    codes = np.random.default_rng(0).integers(form.low, form.high + 1, weight.shape).astype(np.int8)
    np.testing.assert_array_equal(grid.store(codes).dequantize(), grid.values(codes))
    assert set(np.unique(codes)) == set(range(form.low, form.high + 1))  # every code was tried


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
def test_rounding_finds_the_nearest_value(tensor_type: TensorType) -> None:
    weight = make_weight(3, 256)
    grid = make_grid(weight, tensor_type, None)
    form = grid.format
    found = np.abs(grid.values(grid.round(weight)).astype(np.float64) - weight)
    for code in range(form.low, form.high + 1):
        other = np.abs(grid.values(np.full(weight.shape, code, np.int8)).astype(np.float64) - weight)
        assert (found <= other + 1e-6 * np.abs(weight) + 1e-9).all(), code


def test_nearest_q8_0_is_that_of_the_file_format() -> None:
    weight = make_weight(4, 96)
    stored, _ = quantize(weight, TensorType.Q8_0)
    reference = quantize_q8_0(weight)
    difference = stored.raw.astype(int) - reference.astype(int)
    # scales are alike; codes differ only where rounding the scale to float16 moved a tie
    assert (difference.reshape(-1, 34)[:, :2] == 0).all()
    error = np.abs(stored.dequantize() - weight).reshape(-1, 32).max(axis=1)
    assert (error <= 0.5001 * np.abs(weight).reshape(-1, 32).max(axis=1) / 127 * 1.001 + 1e-9).all()


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
def test_groups_of_zeros_stay_zero(tensor_type: TensorType) -> None:
    weight = make_weight(2, 512)
    weight[:, :256] = 0
    stored = round_to_nearest(weight, make_grid(weight, tensor_type, None))
    assert (stored.dequantize()[:, :256] == 0).all()
    assert (stored.dequantize()[:, 256:] != 0).any()


@pytest.mark.parametrize("tensor_type", [t for t in ALL_TYPES if t not in (TensorType.Q2_K, TensorType.Q3_K)])
@pytest.mark.parametrize("value", [0.3, -0.3])
def test_groups_of_one_value_keep_it(tensor_type: TensorType, value: float) -> None:
    weight = np.full((2, 256), value, np.float32)
    stored = round_to_nearest(weight, make_grid(weight, tensor_type, None))
    np.testing.assert_allclose(stored.dequantize(), weight, rtol=0.02)


def test_fields_are_packed_lowest_first() -> None:
    codes = np.array([[0, 1, 2, 3, 0, 1, 2, 3]], np.uint8)
    assert pack_fields(codes, 2, 2).tolist() == [[0 | 2 << 2 | 0 << 4 | 2 << 6, 1 | 3 << 2 | 1 << 4 | 3 << 6]]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("tensor_type", [TensorType.Q4_0, TensorType.Q4_K])
def test_weights_that_are_not_finite_are_refused(bad: float, tensor_type: TensorType) -> None:
    weight = make_weight(3, 256)
    weight[1, 7] = bad
    with pytest.raises(InputError, match="inf or nan"):
        make_grid(weight, tensor_type, None)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="width 576 has no Q4_K blocks"):
        check_weight(make_weight(2, 576), TensorType.Q4_K)
    with pytest.raises(InputError, match="float32"):
        check_weight(make_weight(2, 64).astype(np.float64), TensorType.Q4_0)
    with pytest.raises(InputError, match="does not fit float16"):
        nearest_grid(np.full((1, 32), 1e8, np.float32), TensorType.Q4_0)
    with pytest.raises(UnsupportedError, match="cannot be rounded to IQ4_NL"):
        check_weight(make_weight(2, 64), TensorType.IQ4_NL)


def test_rows_of_a_grid_are_those_of_the_weight() -> None:
    weight = make_weight(6, 256)
    for tensor_type in (TensorType.Q4_0, TensorType.Q4_K):
        grid = make_grid(weight, tensor_type, None)
        codes = grid.round(weight)
        part = grid.rows(2, 5)
        np.testing.assert_array_equal(part.store(codes[2:5]).dequantize(), grid.values(codes)[2:5])
        np.testing.assert_array_equal(part.round(weight[2:5]), codes[2:5])


def test_scales_are_those_of_float16() -> None:
    scales = np.array([[0.1, 1e-9], [-3.3, 0.0]], np.float32)
    grid = plain_grid(TensorType.Q4_0, scales)
    np.testing.assert_array_equal(grid.scales, scales.astype(np.float16).astype(np.float32))
    assert (grid.round(np.ones((2, 64), np.float32))[1, 32:] == 0).all()
