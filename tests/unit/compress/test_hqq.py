"""HQQ against its formulas in double precision; its zeros are integers that the stored blocks keep exactly."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.compress.hqq import HqqOptions, hqq, hqq_grid, short_scales
from subsecond.compress.methods import quantize
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.formats.gguf_types import TensorType
from tests.unit.compress.calibration_data import Floats, make_weight


def reference_zeros(group: np.ndarray, scale: float, options: HqqOptions) -> tuple[float, float]:
    """Best integer zero met on the way, and its loss, for one group in double precision."""
    steps = group.astype(np.float64) / scale
    zero = -min(group.min(), 0.0) / scale

    def loss(z: float) -> float:
        return float((np.abs(steps - (np.clip(np.rint(steps + z), 0, 15) - z)) ** options.p).sum())

    best = np.rint(zero)
    beta = options.beta
    for _ in range(options.num_iterations):
        codes = np.clip(np.rint(steps + zero), 0, 15)
        error = steps - (codes - zero)
        size = np.maximum(np.abs(error), 1e-8)
        shrunk = np.sign(error) * np.maximum(size - size ** (options.p - 1) / beta, 0)
        zero = float((codes - (steps - shrunk)).mean())
        beta *= options.kappa
        if loss(np.clip(np.rint(zero), 0, 15)) < loss(best):
            best = float(np.clip(np.rint(zero), 0, 15))
    return best, loss(best)


def test_it_finds_zeros_as_good_as_the_reference() -> None:
    weight = make_weight(16, 96)
    weight[:, 32:64] += 0.03  # a group off the middle
    options = HqqOptions()
    grid = hqq_grid(weight, options)
    offsets = grid.offsets
    assert offsets is not None
    zeros = -offsets / grid.scales
    steps = weight.reshape(16, 3, 32).astype(np.float64) / grid.scales[..., None]
    codes = np.clip(np.rint(steps + zeros[..., None]), 0, 15)
    losses = (np.abs(steps - (codes - zeros[..., None])) ** options.p).sum(axis=-1)
    for row in range(16):
        for group in range(3):
            part = weight[row, 32 * group : 32 * group + 32]
            _, least = reference_zeros(part, float(grid.scales[row, group]), options)
            assert losses[row, group] <= least * (1 + 1e-3)


@pytest.mark.parametrize("width", [64, 576, 896])
def test_scale_and_zero_are_kept_exactly(width: int) -> None:
    weight = make_weight(32, width)
    weight[0] = 1e-6  # scales that float16 has few bits for
    weight[1, :32] = 0
    stored, found = hqq(weight)
    assert stored.type is TensorType.Q4_1
    grid = hqq_grid(weight)
    assert grid.offsets is not None
    zeros = -grid.offsets[grid.scales > 0].astype(np.float64) / grid.scales[grid.scales > 0]
    np.testing.assert_array_equal(zeros, np.rint(zeros))
    assert zeros.min() >= 0
    assert zeros.max() <= 15
    codes = grid.round(weight).reshape(32, -1, 32).astype(np.float64)
    full = np.zeros(grid.scales.shape)
    full[grid.scales > 0] = zeros
    expected = grid.scales.astype(np.float64)[..., None] * (codes - full[..., None])
    np.testing.assert_array_equal(stored.dequantize().reshape(expected.shape), expected)
    assert found.relative_error < 0.12


def test_scales_are_short_and_not_smaller() -> None:
    scales = np.abs(np.random.default_rng(0).normal(0, 0.01, 1000)).astype(np.float32)
    short = short_scales(scales)
    assert (short >= scales * (1 - 1e-6)).all()
    assert (short <= scales * 1.02).all()
    fraction = np.frexp(short)[0] * 128
    np.testing.assert_array_equal(fraction, np.rint(fraction))
    assert short_scales(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="width 40"):
        hqq(make_weight(2, 40))
    with pytest.raises(InputError, match="give Q4_1"):
        quantize(make_weight(2, 64), TensorType.Q4_0, "hqq")
    with pytest.raises(InputError, match="p above 0"):
        HqqOptions(p=0)
    weight: Floats = make_weight(2, 64)
    weight[0, 0] = np.nan
    with pytest.raises(InputError, match="inf or nan"):
        hqq(weight)
