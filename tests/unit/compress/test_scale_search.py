"""The scale search loses little more than an exhaustive one in double precision, and less than plain scales."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.compress.methods import make_grid
from subsecond.compress.rounding import GRID_FORMATS, Grid, nearest_grid
from subsecond.compress.scale_search import SearchOptions, importance_of, search_grid
from subsecond.compress.statistics import InputStatistics
from subsecond.core.errors import InputError
from subsecond.formats.gguf_types import TensorType
from tests.unit.compress.calibration_data import Floats, make_inputs, make_weight, statistics_of


def weighted_error(weight: Floats, grid: Grid, importance: Floats) -> np.ndarray:
    """Of each group, in double precision."""
    values = grid.values(grid.round(weight)).astype(np.float64)
    errors = importance.astype(np.float64) * (values - weight) ** 2
    total: np.ndarray = errors.reshape(len(weight), -1, 32).sum(axis=-1)
    return total


def exhaustive_error(weight: Floats, importance: Floats, low: int, high: int) -> np.ndarray:
    """The least error of any scale: 4,000 of each sign, group by group."""
    errors = np.empty((len(weight), weight.shape[1] // 32))
    for row in range(len(weight)):
        for group in range(errors.shape[1]):
            w = weight[row, 32 * group : 32 * group + 32].astype(np.float64)
            h = importance[32 * group : 32 * group + 32].astype(np.float64)
            scales = np.linspace(0.4, 1.3, 4000) * np.abs(w).max() / 8
            scales = np.concatenate([scales, -scales])[:, None]
            values = np.clip(np.rint(w / scales), low, high) * scales
            errors[row, group] = (h * (values - w) ** 2).sum(axis=1).min()
    return errors


@pytest.fixture(name="importance")
def _importance() -> Floats:
    return importance_of(statistics_of(make_inputs(96)), 96)


def test_it_loses_hardly_more_than_the_best_of_all_scales(importance: Floats) -> None:
    weight = make_weight(16, 96)
    found = weighted_error(weight, search_grid(weight, TensorType.Q4_0, importance), importance)
    best = exhaustive_error(weight, importance, -8, 7)
    assert found.sum() <= 1.05 * best.sum()
    plain = weighted_error(weight, nearest_grid(weight, TensorType.Q4_0), importance)
    assert found.sum() < 0.9 * plain.sum()
    assert (found <= plain * (1 + 1e-3)).all()  # the plain scale is among the candidates


def test_more_candidates_do_not_lose_more(importance: Floats) -> None:
    weight = make_weight(32, 96)
    errors = [
        weighted_error(weight, search_grid(weight, TensorType.Q4_0, importance, options), importance).sum()
        for options in (SearchOptions(1, 1.0, 1.0, 0), SearchOptions(20), SearchOptions(100))
    ]
    assert errors[0] > errors[1] > 0.999 * errors[2]


@pytest.mark.parametrize("tensor_type", [TensorType.Q4_1, TensorType.Q5_0])
def test_other_types_lose_less_than_q4_0(importance: Floats, tensor_type: TensorType) -> None:
    weight = make_weight(32, 96)
    found = weighted_error(weight, search_grid(weight, tensor_type, importance), importance).sum()
    assert found < weighted_error(weight, search_grid(weight, TensorType.Q4_0, importance), importance).sum()


@pytest.mark.parametrize("tensor_type", [TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K])
def test_super_blocks_lose_hardly_more_than_free_groups(tensor_type: TensorType) -> None:
    """Their scales are integers of six bits times one number; with free scales as float16 they could lose no more."""
    weight, importance = make_weight(24, 512), importance_of(statistics_of(make_inputs(512, 256)), 512)
    grid = make_grid(weight, tensor_type, statistics_of(make_inputs(512, 256)))
    found = weighted_error(weight, grid, importance).sum()
    steps = np.abs(grid.scales).astype(np.float64).repeat(GRID_FORMATS[tensor_type].group_size, axis=1)
    uniform = (importance * steps**2 / 12).sum()  # what errors spread evenly over a step give
    assert found < 1.1 * uniform
    q4_0 = weighted_error(weight, search_grid(weight, TensorType.Q4_0, importance), importance).sum()
    assert found < {TensorType.Q4_K: 0.95, TensorType.Q5_K: 0.25, TensorType.Q6_K: 0.07}[tensor_type] * q4_0


def test_chunks_do_not_change_the_result(importance: Floats) -> None:
    weight = make_weight(3000, 96)  # several chunks
    whole = search_grid(weight, TensorType.Q4_0, importance)
    part = search_grid(np.ascontiguousarray(weight[1000:1100]), TensorType.Q4_0, importance)
    np.testing.assert_array_equal(whole.header[1000:1100], part.header)


def test_importance_has_mean_one_and_dead_inputs_count_a_little() -> None:
    rows = make_inputs(64)
    rows[:, 5] = 0
    importance = importance_of(statistics_of(rows), 64)
    assert importance.mean() == pytest.approx(1)
    assert 0 < importance[5] < 1e-3
    assert (importance_of(None, 8) == 1).all()
    assert (importance_of(statistics_of(np.zeros((4, 8), np.float32)), 8) == 1).all()


def test_damaged_statistics_are_refused() -> None:
    statistics = statistics_of(make_inputs(64))
    bad = InputStatistics(1, statistics.mean, statistics.mean * np.nan, statistics.mean, statistics.mean)
    with pytest.raises(InputError, match="collect them again"):
        importance_of(bad, 64)
    with pytest.raises(InputError, match="do not belong"):
        importance_of(statistics, 32)
    with pytest.raises(InputError, match="num_candidates"):
        SearchOptions(0)
