from __future__ import annotations

import numpy as np
import pytest

from subsecond.compress import importance
from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError
from tests.unit.compress.correlated_inputs import (
    correlated_rows,
    mean_square_error,
    random_weight,
    statistics_of,
)


def best_fit_error(rows: Floats, weight: Floats, kept: np.ndarray) -> float:
    """E||W x - W' x_K||^2 of the best W', by least squares on the rows themselves."""
    x = rows.astype(np.float64)
    y = x @ weight.astype(np.float64).T
    fitted = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
    return float(np.square(y - x[:, kept] @ fitted).sum(axis=1).mean())


def test_importance_by_activation_is_minitrons() -> None:
    parts = [correlated_rows(12, 30, seed=seed) for seed in (1, 2)]
    expected = np.sqrt(sum(np.abs(part.astype(np.float64)).mean(0) ** 2 for part in parts))
    found = importance.activation_importance([statistics_of(part) for part in parts])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(InputError, match="at least one"):
        importance.activation_importance([])


def test_importance_by_fluctuation_is_variance_times_the_columns_norm() -> None:
    rows, weight = correlated_rows(12), random_weight(5, 12)
    expected = rows.astype(np.float64).var(0) * np.square(weight.astype(np.float64)).sum(0)
    found = importance.fluctuation_importance(weight, statistics_of(rows))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_constant_input_does_not_fluctuate() -> None:
    rows = np.full((10, 3), 0.1, np.float32)
    assert importance.fluctuation_importance(random_weight(2, 3), statistics_of(rows)).max() < 1e-6


def test_taylor_importance_is_the_loss_that_the_neurons_weights_stand_for() -> None:
    weights, gradients = [random_weight(6, n, seed=n) for n in (3, 4)], [random_weight(6, n, seed=9) for n in (3, 4)]
    expected = [abs(sum(float(w[n] @ g[n]) for w, g in zip(weights, gradients, strict=True))) for n in range(6)]
    np.testing.assert_allclose(importance.taylor_importance(weights, gradients), expected, rtol=1e-4)
    with pytest.raises(InputError, match="do not fit"):
        importance.taylor_importance(weights, [gradients[0], gradients[0]])
    with pytest.raises(InputError, match="each needs the other"):
        importance.taylor_importance(weights, gradients[:1])


def test_sensitivity_is_the_error_of_the_best_fit_without_the_neuron() -> None:
    rows, weight = correlated_rows(10, 80), random_weight(4, 10)
    found = importance.sensitivity_importance(weight, statistics_of(rows).gram, damping=1e-7)
    expected = [best_fit_error(rows, weight, np.delete(np.arange(10), n)) for n in range(10)]
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_greedy_choice_is_as_good_as_removing_one_by_one_with_a_new_fit_each_time() -> None:
    rows, weight = correlated_rows(12, 100), random_weight(4, 12)
    kept = list(range(12))
    for _ in range(5):
        errors = [best_fit_error(rows, weight, np.array([k for k in kept if k != n])) for n in kept]
        kept.pop(int(np.argmin(errors)))
    found = importance.select_greedily(weight, statistics_of(rows).gram, 7, num_at_once=1, damping=1e-7)
    assert found.tolist() == kept


def test_greedy_choice_keeps_one_of_two_equal_inputs() -> None:
    rows, weight = correlated_rows(20, rank=20), random_weight(6, 20)
    rows[:, 4] = rows[:, 13] = 5 * rows[:, 4] / rows[:, 4].std()
    weight[:, [4, 13]] *= 10
    gram = statistics_of(rows).gram
    greedy = importance.select_greedily(weight, gram, 12, num_at_once=1, damping=1e-6)
    assert len({4, 13} & set(greedy.tolist())) == 1
    at_once = importance.select_best(importance.sensitivity_importance(weight, gram, 1e-6), 12)
    assert best_fit_error(rows, weight, greedy) < best_fit_error(rows, weight, at_once)


def test_inputs_that_were_always_zero_leave_first() -> None:
    rows, weight = correlated_rows(8), random_weight(3, 8)
    rows[:, [1, 6]] = 0
    statistics = statistics_of(rows)
    assert importance.select_greedily(weight, statistics.gram, 6, num_at_once=1).tolist() == [0, 2, 3, 4, 5, 7]
    for scores in (
        importance.activation_importance([statistics]),
        importance.fluctuation_importance(weight, statistics),
    ):
        assert importance.select_best(scores, 6).tolist() == [0, 2, 3, 4, 5, 7]


def test_the_best_are_kept_in_order_and_the_first_of_equal_ones() -> None:
    assert importance.select_best(np.array([3.0, 5.0, 3.0, 1.0, 3.0]), 3).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="allowed are 1 to 5"):
        importance.select_best(np.zeros(5), 6)
    with pytest.raises(InputError, match="NaN"):
        importance.select_best(np.array([1.0, np.nan]), 1)


@pytest.mark.parametrize(
    ("width", "part", "multiple", "expected"),
    [(1536, 0.8, 64, 1216), (4864, 0.8, 64, 3904), (4864, 0.8, 256, 3840), (576, 0.5, 64, 320), (96, 0.6, 64, 64)],
)
def test_widths_are_multiples(width: int, part: float, multiple: int, expected: int) -> None:
    assert importance.rounded_width(width, part, multiple) == expected


def test_impossible_widths_are_refused() -> None:
    with pytest.raises(InputError, match="nothing would be removed"):
        importance.rounded_width(256, 0.95)
    with pytest.raises(InputError, match="more than 0"):
        importance.rounded_width(256, 0.0)
    with pytest.raises(InputError, match="multiples of 32"):
        importance.rounded_width(256, 0.5, 48)


def test_choices_that_know_of_the_refit_leave_less_error() -> None:
    rows, weight = correlated_rows(72, rank=24), random_weight(18, 72)
    statistics = statistics_of(rows)
    by_activation = importance.select_best(importance.activation_importance([statistics]), 36)
    greedy = importance.select_greedily(weight, statistics.gram, 36, num_at_once=4)
    assert best_fit_error(rows, weight, greedy) < best_fit_error(rows, weight, by_activation)
    cut = weight * np.isin(np.arange(72), greedy)
    assert best_fit_error(rows, weight, greedy) < 0.5 * mean_square_error(rows, weight, cut)
