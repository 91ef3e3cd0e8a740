from __future__ import annotations

import numpy as np
import pytest

from subsecond.compress.refit import output_error, refit_columns
from subsecond.core.errors import InputError
from tests.unit.compress.correlated_inputs import (
    correlated_rows,
    mean_square_error,
    random_weight,
    statistics_of,
)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(5, 11), (64, 96), (36, 56)])
def test_refit_is_ridge_regression_towards_the_old_weights(num_outputs: int, num_inputs: int) -> None:
    rows, weight = correlated_rows(num_inputs), random_weight(num_outputs, num_inputs)
    kept = np.arange(0, num_inputs, 2)
    gram = statistics_of(rows).gram
    assert gram is not None
    W, G = weight.astype(np.float64), gram.astype(np.float64)
    ridge = 0.01 * np.diag(G[np.ix_(kept, kept)]).mean() * np.eye(len(kept))
    # the normal equations of E||W x - W' x_K||^2 + ridge ||W' - W_K||^2, solved without the product's own shortcut
    expected = np.linalg.solve(G[np.ix_(kept, kept)] + ridge, (W @ G[:, kept] + W[:, kept] @ ridge).T).T
    found = refit_columns(weight, gram, kept)
    np.testing.assert_allclose(found.weight, expected, rtol=1e-4, atol=1e-5)
    assert found.bias is None and found.weight.dtype == np.float32


def test_errors_are_those_of_the_rows() -> None:
    rows, weight, kept = correlated_rows(24), random_weight(9, 24), np.arange(16)
    found = refit_columns(weight, statistics_of(rows).gram, kept)
    energy = mean_square_error(rows, weight, 0 * weight)
    cut, new = np.zeros_like(weight), np.zeros_like(weight)
    cut[:, kept], new[:, kept] = weight[:, kept], found.weight
    np.testing.assert_allclose(found.error_cut, mean_square_error(rows, weight, cut) / energy, rtol=1e-3)
    np.testing.assert_allclose(found.error, mean_square_error(rows, weight, new) / energy, rtol=1e-2)
    np.testing.assert_allclose(output_error(weight, new, statistics_of(rows).gram), found.error, rtol=1e-5)
    assert found.error < 0.7 * found.error_cut


def test_nothing_changes_where_nothing_is_pruned() -> None:
    weight = random_weight(4, 10)
    found = refit_columns(weight, statistics_of(correlated_rows(10)).gram, np.arange(10))
    assert np.array_equal(found.weight, weight)
    assert found.error == 0


def test_a_bias_absorbs_the_mean_of_what_is_gone() -> None:
    rows = correlated_rows(20, rank=20) + np.float32(2)
    weight, bias, kept, statistics = random_weight(6, 20), np.ones(6, np.float32), np.arange(12), statistics_of(rows)
    found = refit_columns(weight, statistics.gram, kept, bias=bias, mean=statistics.mean, damping=1e-6)
    assert found.bias is not None
    x, W = rows.astype(np.float64), weight.astype(np.float64)
    y = x @ W.T + bias
    fitted = np.linalg.lstsq(np.c_[x[:, kept], np.ones(len(x))], y, rcond=None)[0]
    np.testing.assert_allclose(found.bias, fitted[-1], rtol=1e-2, atol=1e-2)
    difference = y - (x[:, kept] @ found.weight.T + found.bias)
    energy = np.square(x @ W.T).sum(axis=1).mean()
    np.testing.assert_allclose(found.error, np.square(difference).sum(axis=1).mean() / energy, rtol=0.02)


def test_inputs_that_were_always_zero_change_nothing() -> None:
    rows, weight = correlated_rows(10), random_weight(4, 10)
    rows[:, [2, 7]] = 0
    gram = statistics_of(rows).gram
    kept = np.array([0, 1, 2, 3, 4, 5, 6, 8, 9])
    found = refit_columns(weight, gram, kept)
    np.testing.assert_allclose(found.weight, weight[:, kept], atol=1e-6)
    silent = refit_columns(weight, np.zeros((10, 10), np.float32), kept)
    assert np.array_equal(silent.weight, weight[:, kept]) and silent.error == 0
    assert output_error(weight, 2 * weight, np.zeros((10, 10), np.float32)) == 0


def test_bad_input_is_refused() -> None:
    weight, gram = random_weight(4, 10), statistics_of(correlated_rows(10)).gram
    for kept in ([], [1, 1], [2, 1], [-1, 2], [3, 10]):
        with pytest.raises(InputError, match="ascending order"):
            refit_columns(weight, gram, np.array(kept, np.int64))
    with pytest.raises(InputError, match="Gram matrix has shape"):
        refit_columns(weight[:, :9], gram, np.arange(4))
    weight[0, 0] = np.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        refit_columns(weight, gram, np.arange(4))
