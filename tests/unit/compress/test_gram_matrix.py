from __future__ import annotations

import numpy as np
import pytest

from subsecond.compress.gram_matrix import checked_gram, checked_weight, factor, inverse, inverse_factor
from subsecond.core.errors import InputError
from tests.unit.compress.correlated_inputs import correlated_rows, random_weight, statistics_of


def damped(gram: np.ndarray, damping: float) -> np.ndarray:
    G = gram.astype(np.float64)
    added = np.where(np.diag(G) == 0, 1.0, damping) * np.diag(G).mean()
    return (G + G.T) / 2 + np.diag(added)


@pytest.mark.parametrize("num_inputs", [7, 64, 72])
def test_factors_and_inverse_are_those_of_the_damped_matrix(num_inputs: int) -> None:
    gram = statistics_of(correlated_rows(num_inputs)).gram
    assert gram is not None
    G, expected = checked_gram(gram, num_inputs), damped(gram, 0.05)
    lower, upper = factor(G, 0.05).numpy(), inverse_factor(G, 0.05).numpy()
    np.testing.assert_allclose(lower @ lower.T, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(inverse(G, 0.05).numpy() @ expected, np.eye(num_inputs), atol=1e-8)
    np.testing.assert_allclose(upper.T @ upper @ expected, np.eye(num_inputs), atol=1e-8)
    assert np.array_equal(upper, np.triu(upper))


def test_diagonal_of_the_inverse_factor_forgets_earlier_inputs() -> None:
    gram = statistics_of(correlated_rows(9)).gram
    assert gram is not None
    U, expected = inverse_factor(checked_gram(gram, 9), 0.01).numpy(), damped(gram, 0.01)
    for j in range(9):
        np.testing.assert_allclose(U[j, j] ** 2, np.linalg.inv(expected[j:, j:])[0, 0], rtol=1e-8)


def test_inputs_that_were_always_zero_stay_apart() -> None:
    rows = correlated_rows(8)
    rows[:, [2, 5]] = 0
    gram = statistics_of(rows).gram
    assert gram is not None
    lower = factor(checked_gram(gram, 8)).numpy()
    np.testing.assert_allclose(lower @ lower.T, damped(gram, 0.01), rtol=1e-10)
    assert np.isfinite(factor(checked_gram(np.zeros((3, 3), np.float32), 3)).numpy()).all()


def test_damping_is_raised_until_the_matrix_is_positive_definite() -> None:
    gram = np.full((4, 4), 1.0, np.float32) - 0.02 * np.eye(4, dtype=np.float32)  # eigenvalues -0.02 and 3.98
    lower = factor(checked_gram(gram, 4), 0.01).numpy()
    np.testing.assert_allclose(lower @ lower.T, gram + 0.1 * 0.98 * np.eye(4), rtol=1e-6)
    with pytest.raises(InputError, match="positive definite"):
        factor(checked_gram(np.array([[1, 9e4], [9e4, 1]], np.float32), 2))


def test_bad_matrices_are_refused() -> None:
    with pytest.raises(InputError, match="needs the Gram matrix"):
        checked_gram(None, 3)
    with pytest.raises(InputError, match="has shape"):
        checked_gram(np.eye(3, dtype=np.float32), 4)
    with pytest.raises(InputError, match="NaN or infinity"):
        checked_gram(np.full((2, 2), np.inf, np.float32), 2)
    with pytest.raises(InputError, match="negative"):
        checked_gram(-np.eye(2, dtype=np.float32), 2)
    with pytest.raises(InputError, match="NaN or infinity"):
        checked_weight(np.full((2, 2), np.nan, np.float32))
    with pytest.raises(InputError, match="must be a matrix"):
        checked_weight(random_weight(2, 3)[0])
    with pytest.raises(InputError, match="damping"):
        factor(checked_gram(np.eye(2, dtype=np.float32), 2), 0.0)
