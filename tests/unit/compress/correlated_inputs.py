"""Inputs as calibration sees them, for tests of compression: correlated channels of very different sizes."""

from __future__ import annotations

import numpy as np

from subsecond.compress.statistics import Floats, InputStatistics


def correlated_rows(num_inputs: int, num_rows: int | None = None, *, seed: int = 0, rank: int | None = None) -> Floats:
    """Rows [num_rows, num_inputs] of a mixture of `rank` sources with a little noise, and with a mean that is not 0."""
    rng = np.random.default_rng(seed)
    rank, num_rows = rank or max(2, num_inputs // 2), num_rows or 4 * num_inputs
    sources = rng.standard_normal((num_rows, rank)) @ rng.standard_normal((rank, num_inputs)) / np.sqrt(rank)
    rows = sources + 0.1 * rng.standard_normal((num_rows, num_inputs)) + 0.3 * rng.standard_normal(num_inputs)
    found: Floats = (rows * np.exp(rng.standard_normal(num_inputs))).astype(np.float32)
    return found


def statistics_of(rows: Floats) -> InputStatistics:
    """Everything that calibration counts."""
    x = rows.astype(np.float64)
    found = [x.mean(0), np.square(x).mean(0), np.abs(x).mean(0), np.abs(x).max(0), x.T @ x / len(x)]
    return InputStatistics(len(x), *(each.astype(np.float32) for each in found))


def random_weight(num_outputs: int, num_inputs: int, *, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((num_outputs, num_inputs)).astype(np.float32)


def mean_square_error(rows: Floats, weight: Floats, changed: Floats) -> float:
    """E||W x - W' x||^2 in float64, computed from the rows themselves."""
    x = rows.astype(np.float64)
    return float(np.square(x @ (weight.astype(np.float64) - changed.astype(np.float64)).T).sum(axis=1).mean())
