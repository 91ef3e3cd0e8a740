from __future__ import annotations

import numpy as np
import pytest

from subsecond.compress import masks
from subsecond.compress.layer_ratios import layer_densities, outlier_part
from subsecond.core.errors import InputError
from tests.unit.compress.correlated_inputs import correlated_rows, random_weight, statistics_of


def test_wanda_scores_are_magnitude_times_norm() -> None:
    rows, weight = correlated_rows(30), random_weight(7, 30)
    expected = np.abs(weight.astype(np.float64)) * np.linalg.norm(rows.astype(np.float64), axis=0)
    np.testing.assert_allclose(masks.wanda_scores(weight, statistics_of(rows)), expected, rtol=1e-5)
    with pytest.raises(InputError, match="statistics are of 30 inputs"):
        masks.wanda_scores(weight[:, :9], statistics_of(rows))


@pytest.mark.parametrize("shape", [(5, 576), (9, 7)])
def test_each_row_keeps_its_largest(shape: tuple[int, int]) -> None:
    weight = random_weight(*shape)
    mask = masks.keep_largest(masks.magnitude_scores(weight), 0.3)
    for row, kept in zip(np.abs(weight), mask, strict=True):
        assert kept.sum() == round(0.3 * shape[1])
        assert row[kept].min() >= row[~kept].max()


def test_a_matrix_keeps_its_largest_whatever_their_rows() -> None:
    weight = random_weight(6, 50) * np.arange(1, 7, dtype=np.float32)[:, None]
    mask = masks.keep_largest(np.abs(weight), 0.5, "matrix")
    assert mask.sum() == 150
    assert np.abs(weight)[mask].min() >= np.abs(weight)[~mask].max()
    assert len(set(mask.sum(axis=1).tolist())) > 1


def test_of_equal_scores_the_first_stay() -> None:
    mask = masks.keep_largest(np.zeros((2, 4), np.float32), 0.5)
    assert mask.tolist() == [[True, True, False, False]] * 2
    assert masks.keep_largest(np.ones((1, 3), np.float32), 1.0).all()
    assert not masks.keep_largest(np.ones((1, 3), np.float32), 0.0).any()


def test_two_of_four_stay() -> None:
    scores = np.abs(random_weight(5, 24))
    mask = masks.keep_in_groups(scores)
    groups, kept = scores.reshape(-1, 4), mask.reshape(-1, 4)
    for row, chosen in zip(groups, kept, strict=True):
        assert sorted(row[chosen]) == sorted(row)[2:]
    with pytest.raises(InputError, match="groups divide"):
        masks.keep_in_groups(scores[:, :22])


def test_bad_scores_are_refused() -> None:
    scores = np.abs(random_weight(2, 4))
    with pytest.raises(InputError, match="density"):
        masks.keep_largest(scores, 1.5)
    with pytest.raises(InputError, match="matrices"):
        masks.keep_largest(scores[0], 0.5)
    scores[0, 1] = np.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        masks.keep_largest(scores, 0.5)
    with pytest.raises(InputError, match="NaN or infinite"):
        masks.keep_in_groups(scores)


def test_density_counts_what_is_not_zero() -> None:
    assert masks.density_of(np.array([[0, 1, -2], [0, 0, 3]], np.float32)) == 0.5


def test_outliers_are_counted_over_all_matrices_of_a_layer() -> None:
    scores = [np.ones((2, 5), np.float32), np.array([[1, 1, 1, 1, 30.0]], np.float32)]
    assert outlier_part(scores) == 1 / 15  # mean 44 / 15, five times that is 14.7
    with pytest.raises(InputError, match="at least one matrix"):
        outlier_part([])
    with pytest.raises(InputError, match="NaN"):
        outlier_part([np.full((1, 1), np.nan, np.float32)])


def test_layers_with_more_outliers_stay_denser() -> None:
    parts, sizes = [0.001, 0.004, 0.002, 0.001], [100, 100, 100, 100]
    found = layer_densities(parts, sizes, 0.3, 0.08)
    scaled = (np.array(parts) - 0.001) / 0.003
    np.testing.assert_allclose(found, 0.3 + 0.16 * (scaled - scaled.mean()))
    assert found.max() - found.min() == pytest.approx(0.16)


def test_densities_hold_on_average_by_size_and_stay_possible() -> None:
    sizes = np.array([100, 900, 300])
    for density in (0.02, 0.5, 0.99):
        found = layer_densities([0.5, 0.1, 0.2], sizes.tolist(), density, 0.4)
        assert (found * sizes).sum() / sizes.sum() == pytest.approx(density)
        assert found.min() >= -1e-12 and found.max() <= 1 + 1e-12
    assert layer_densities([0.1, 0.1], [1, 2], 0.4).tolist() == [0.4, 0.4]
    with pytest.raises(InputError, match="one a layer"):
        layer_densities([0.1], [1, 2], 0.4)
    with pytest.raises(InputError, match="not possible"):
        layer_densities([0.1, np.nan], [1, 2], 0.4)
