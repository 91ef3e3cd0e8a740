"""Nested formats: one weight whose two readings are as good as weights of eight and of four bits alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond import _native
from subsecond.backends.native.weights import PackedMatrix, PackedWeights
from tests.parity.kernel_cases import ISAS, Floats
from tests.parity.test_channel_kernels import ChannelWeight, make_weight, random_weight, rotation, run_linear

LOWEST, HIGHEST = -128, 120


def rotated(values: Floats) -> NDArray[np.float64]:
    matrix, factor = rotation(values.shape[1])
    return np.asarray(values.astype(np.float64) @ matrix / factor)


def reference_numbers(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Whole numbers [n, k] of eight bits and signed scales [n], of the sign whose scale is smaller."""
    lowest, highest = np.minimum(values.min(1), 0), np.maximum(values.max(1), 0)
    plain = np.maximum(lowest / LOWEST, highest / HIGHEST)
    turned = np.maximum(-highest / LOWEST, -lowest / HIGHEST)
    scales = np.where(plain <= turned, plain, -turned)
    return np.rint(values / scales[:, None]).clip(LOWEST, HIGHEST).astype(np.int64), scales


def relative_error(weight: ChannelWeight) -> float:
    integers, scales = weight.integers()
    wanted = rotated(weight.values)
    return float(np.sqrt(((integers * scales[:, None] - wanted) ** 2).sum() / (wanted**2).sum()))


@pytest.mark.parametrize("k", [32, 100, 576, 2048])
def test_eight_bits_are_the_nearest_whole_numbers(k: int) -> None:
    weight = random_weight("NESTED8", 48, k, np.random.default_rng(k))
    numbers, scales = reference_numbers(rotated(weight.values))
    integers, found_scales = weight.integers()
    np.testing.assert_allclose(found_scales, scales, rtol=1e-4)
    assert np.abs(integers - numbers).max() <= 1  # of a tie
    assert (integers == numbers).mean() > 0.999


@pytest.mark.parametrize("isa", ISAS)
def test_a_tile_holds_all_numbers_from_the_lowest_to_the_highest(isa: str) -> None:
    wanted = np.concatenate([np.arange(start, HIGHEST + 1, 8) for start in range(LOWEST, LOWEST + 8)])  # 31 or 32 each
    values = np.zeros((16, 512))
    values[:, : wanted.size] = wanted
    values[:, 0::32], values[:, 1::32] = LOWEST, HIGHEST
    matrix, _ = rotation(512)
    weight = make_weight("NESTED8", (values @ matrix).astype(np.float32))
    integers, scales = weight.integers()
    np.testing.assert_array_equal(integers, values)
    np.testing.assert_allclose(scales, 1, rtol=1e-5)
    for made in (weight, ChannelWeight("NESTED4", weight.values, weight.packed)):
        x = np.random.default_rng(1).standard_normal((5, 512), dtype=np.float32)
        singles = [run_linear(isa, x[row : row + 1], [made]) for row in range(5)]
        np.testing.assert_array_equal(run_linear(isa, x, [made]), np.concatenate(singles))


def test_both_readings_are_of_the_same_bytes_and_as_good_as_plain_formats() -> None:
    for spread in (0.0, 1.0):  # of the channels
        rng = np.random.default_rng(3)
        gains = np.exp(spread * rng.standard_normal(576))
        values = (rng.standard_normal((64, 576)) * gains).astype(np.float32)
        made = {name: make_weight(name, values) for name in ("INT8", "INT4", "NESTED8", "NESTED4")}
        np.testing.assert_array_equal(made["NESTED8"].packed, made["NESTED4"].packed)
        errors = {name: relative_error(weight) for name, weight in made.items()}
        assert errors["NESTED8"] < 1.05 * errors["INT8"]
        assert errors["NESTED4"] < 1.02 * errors["INT4"]


def test_a_copy_and_its_residual_take_four_bits_more_than_int4() -> None:
    for n, k in ((16, 32), (100, 576), (2048, 8192)):
        sizes = {name: _native.packed_size(name, n, k) for name in ("INT4", "NESTED8", "NESTED4")}
        assert sizes["NESTED8"] == sizes["NESTED4"] == sizes["INT4"] + -(-n // 16) * -(-k // 32) * 256


@pytest.mark.parametrize("isa", ISAS)
def test_the_reading_of_four_bits_does_not_look_at_the_residual(isa: str) -> None:
    rng = np.random.default_rng(5)
    weight, x = random_weight("NESTED4", 40, 320, rng), rng.standard_normal((3, 320), dtype=np.float32)
    expected = run_linear(isa, x, [weight])
    packed = weight.packed.copy()
    packed[_native.packed_size("INT4", 40, 320) :] = 0xA5
    np.testing.assert_array_equal(run_linear(isa, x, [ChannelWeight("NESTED4", weight.values, packed)]), expected)


def test_weights_change_their_reading_without_a_copy() -> None:
    packed = np.zeros(_native.packed_size("NESTED8", 16, 32), np.uint8)
    plain = np.zeros(_native.packed_size("INT8", 16, 32), np.uint8)
    matrices = {"a": PackedMatrix("NESTED8", 16, 32, packed), "b": PackedMatrix("INT8", 16, 32, plain)}
    weights = PackedWeights(matrices, {}).read_as("nested4")
    assert [weights.matrices[name].format for name in "ab"] == ["NESTED4", "INT8"]
    assert weights.matrices["a"].data is packed
