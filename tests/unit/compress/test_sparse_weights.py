"""SparseGPT, exchange of mask entries and least squares within a mask, each beside a plain float64 version."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.compress.mask_swaps import swap_masks
from subsecond.compress.masked_refit import masked_refit
from subsecond.compress.masks import Mask, keep_largest, magnitude_scores, wanda_scores
from subsecond.compress.refit import output_error
from subsecond.compress.sparsegpt import sparsegpt
from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError
from tests.unit.compress.correlated_inputs import (
    correlated_rows,
    mean_square_error,
    random_weight,
    statistics_of,
)


def gram_of(rows: Floats) -> Floats:
    gram = statistics_of(rows).gram
    assert gram is not None
    return gram


def plain_sparsegpt(
    weight: Floats, gram: Floats, density: float, block: int, pattern: tuple[int, int] | None
) -> np.ndarray:
    """Optimal brain surgery written from its definition: a new inverse for every column, nothing factored."""
    W, n = weight.astype(np.float64), weight.shape[1]
    H = gram.astype(np.float64)
    is_dead = np.diag(H) == 0
    W[:, is_dead] = 0
    H = H + np.diag(np.where(is_dead, 1.0, 0.01) * np.diag(H).mean())
    inverses = [np.linalg.inv(H[j:, j:]) for j in range(n)]
    corners = np.array([each[0, 0] for each in inverses])
    for start in range(0, n, block):
        columns = np.arange(start, min(start + block, n))
        saliency = W[:, columns] ** 2 / corners[columns]
        keep = np.ones(saliency.shape, bool)
        if pattern is None:
            keep.flat[np.argsort(-saliency, axis=None, kind="stable")[round(density * keep.size) :]] = False
        for j in columns:
            if pattern is not None and j % pattern[1] == 0:
                group = np.arange(j, j + pattern[1])
                order = np.argsort(-(W[:, group] ** 2 / corners[group]), axis=1, kind="stable")
                np.put_along_axis(keep[:, group - start], order[:, pattern[0] :], values=False, axis=1)
                chosen = np.ones((len(W), pattern[1]), bool)
                np.put_along_axis(chosen, order[:, pattern[0] :], values=False, axis=1)
                keep[:, group - start] = chosen
            gone = ~keep[:, j - start]
            W[gone, j:] -= np.outer(W[gone, j] / corners[j], inverses[j][0])
            W[gone, j] = 0
    return W


@pytest.mark.parametrize(
    ("num_inputs", "block", "density", "pattern"),
    [(40, 16, 0.5, None), (36, 128, 0.2, None), (24, 1, 0.5, None), (24, 8, 0.5, (2, 4)), (24, 128, 0.5, (1, 3))],
)
def test_sparsegpt_is_optimal_brain_surgery(
    num_inputs: int, block: int, density: float, pattern: tuple[int, int] | None
) -> None:
    weight, gram = random_weight(6, num_inputs), gram_of(correlated_rows(num_inputs))
    found = sparsegpt(weight, gram, density, block=block, pattern=pattern)
    expected = plain_sparsegpt(weight, gram, density, block, pattern)
    assert np.array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_sparsegpt_removes_what_was_asked_for() -> None:
    weight, gram = random_weight(20, 72), gram_of(correlated_rows(72))
    assert np.count_nonzero(sparsegpt(weight, gram, 0.25)) == round(0.25 * weight.size)
    groups = sparsegpt(weight, gram, 0.5, pattern=(2, 4)).reshape(-1, 4)
    assert set(np.count_nonzero(groups, axis=1).tolist()) == {2}
    np.testing.assert_allclose(sparsegpt(weight, gram, 1.0), weight)


def test_each_method_leaves_less_error_than_the_one_before() -> None:
    rows, weight = correlated_rows(96, rank=40), random_weight(24, 96)
    statistics, gram = statistics_of(rows), gram_of(rows)
    by_magnitude = keep_largest(magnitude_scores(weight), 0.5)
    by_wanda = keep_largest(wanda_scores(weight, statistics), 0.5)
    swapped = swap_masks(weight, by_wanda, gram)
    errors = [
        mean_square_error(rows, weight, candidate)
        for candidate in (
            weight * by_magnitude,
            weight * by_wanda,
            weight * swapped,
            masked_refit(weight, swapped, gram),
        )
    ]
    assert errors == sorted(errors, reverse=True)
    assert mean_square_error(rows, weight, sparsegpt(weight, gram, 0.5)) < 0.6 * errors[1]


def plain_swaps(weight: Floats, mask: Mask, gram: Floats, num_steps: int) -> Mask:
    """The best exchange of each row by trying all of them."""
    W, G, found = weight.astype(np.float64), gram.astype(np.float64), mask.copy()
    for w, m in zip(W, found, strict=True):
        for _ in range(num_steps):
            left = w * ~m
            error, best = left @ G @ left, None
            for u in np.flatnonzero(m):
                for p in np.flatnonzero(~m):
                    other = left.copy()
                    other[u], other[p] = w[u], 0
                    if (after := other @ G @ other) < (error if best is None else best[0]):
                        best = (after, u, p)
            if best is None or best[0] > error * (1 - 1e-6):
                break
            m[best[1]], m[best[2]] = False, True
    return found


def test_swaps_are_the_best_exchanges() -> None:
    weight, gram = random_weight(5, 14), gram_of(correlated_rows(14))
    mask = keep_largest(magnitude_scores(weight), 0.5)
    for num_steps in (0, 1, 3, 50):
        found = swap_masks(weight, mask, gram, num_steps=num_steps, num_candidates=None)
        assert np.array_equal(found, plain_swaps(weight, mask, gram, num_steps)), num_steps


@pytest.mark.parametrize("num_inputs", [56, 128])
def test_swaps_keep_the_count_and_never_raise_the_error_of_a_row(num_inputs: int) -> None:
    weight, gram = random_weight(12, num_inputs), gram_of(correlated_rows(num_inputs))
    mask = keep_largest(magnitude_scores(weight), 0.4)
    found = swap_masks(weight, mask, gram)
    assert np.array_equal(found.sum(axis=1), mask.sum(axis=1))
    for w, before, after in zip(weight, mask, found, strict=True):
        w = w[None]
        assert output_error(w, w * after, gram) <= output_error(w, w * before, gram)
    assert output_error(weight, weight * found, gram) < 0.8 * output_error(weight, weight * mask, gram)


def test_rows_without_a_choice_stay() -> None:
    weight, gram = random_weight(2, 6), gram_of(correlated_rows(6))
    for mask in (np.ones((2, 6), np.bool_), np.zeros((2, 6), np.bool_)):
        assert np.array_equal(swap_masks(weight, mask, gram), mask)
    silent = swap_masks(weight, np.arange(6) % 2 == np.zeros((2, 1)), np.zeros((6, 6), np.float32))
    assert np.array_equal(silent, np.arange(6) % 2 == np.zeros((2, 1)))


def test_masked_refit_is_least_squares_of_each_row() -> None:
    weight, gram = random_weight(6, 18), gram_of(correlated_rows(18))
    mask = keep_largest(magnitude_scores(weight), 0.5)
    found = masked_refit(weight, mask, gram)
    G = gram.astype(np.float64) + 0.01 * np.diag(gram).mean() * np.eye(18)
    for w, m, row in zip(weight.astype(np.float64), mask, found, strict=True):
        expected = np.zeros(18)
        expected[m] = np.linalg.solve(G[np.ix_(m, m)], G[m] @ w)
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-4)
        assert np.array_equal(row == 0, ~m)


def test_masked_refit_with_dead_inputs_and_empty_rows() -> None:
    rows, weight = correlated_rows(12), random_weight(3, 12)
    rows[:, 4] = 0
    mask = keep_largest(magnitude_scores(weight), 0.5)
    mask[0], mask[1] = False, True
    found = masked_refit(weight, mask, gram_of(rows))
    assert not found[0].any()
    np.testing.assert_allclose(found[1], weight[1], rtol=1e-6)
    silent = masked_refit(weight, mask, np.zeros((12, 12), np.float32))
    np.testing.assert_allclose(silent, weight * mask)


def test_dead_inputs_lose_their_weights_in_sparsegpt() -> None:
    rows, weight = correlated_rows(16), random_weight(4, 16)
    rows[:, [3, 9]] = 0
    found = sparsegpt(weight, gram_of(rows), 0.5)
    assert not found[:, [3, 9]].any()
    assert np.array_equal(found == 0, plain_sparsegpt(weight, gram_of(rows), 0.5, 128, None) == 0)


def test_bad_input_is_refused() -> None:
    weight, gram = random_weight(4, 10), gram_of(correlated_rows(10))
    mask = np.ones((4, 10), np.bool_)
    with pytest.raises(InputError, match="density"):
        sparsegpt(weight, gram, 0.0)
    with pytest.raises(InputError, match="groups divide"):
        sparsegpt(weight, gram, 0.5, pattern=(2, 4))
    with pytest.raises(InputError, match="the weight needs bool"):
        swap_masks(weight, mask[:2], gram)
    with pytest.raises(InputError, match="steps"):
        swap_masks(weight, mask, gram, num_candidates=0)
    with pytest.raises(InputError, match="the weight needs bool"):
        masked_refit(weight, mask.astype(np.float32), gram)
    weight[1, 1] = np.inf
    for call in (lambda: sparsegpt(weight, gram, 0.5), lambda: swap_masks(weight, mask, gram)):
        with pytest.raises(InputError, match="NaN or infinity"):
            call()
