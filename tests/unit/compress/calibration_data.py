"""Weights and inputs like those of models: correlated inputs with a few large channels, weights with outliers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from subsecond.compress.statistics import InputStatistics

Floats = NDArray[np.float32]


def make_inputs(width: int, num_rows: int = 2048, seed: int = 0) -> Floats:
    generator = np.random.default_rng(seed)
    mixing = generator.normal(0, 1, (width // 2, width)) + 0.3
    rows = generator.normal(0, 1, (num_rows, width // 2)) @ mixing / np.sqrt(width)
    rows += 0.1 * generator.normal(0, 1, (num_rows, width))
    rows[:, :: max(1, width // 5)] *= 8
    found: Floats = rows.astype(np.float32)
    return found


def make_weight(outputs: int, width: int, seed: int = 1) -> Floats:
    generator = np.random.default_rng(seed)
    return (0.02 * generator.standard_t(5, (outputs, width))).astype(np.float32)


def statistics_of(rows: Floats, *, has_gram: bool = True) -> InputStatistics:
    wide = rows.astype(np.float64)
    return InputStatistics(
        num_rows=len(rows),
        mean=wide.mean(axis=0).astype(np.float32),
        mean_square=(wide**2).mean(axis=0).astype(np.float32),
        mean_abs=np.abs(wide).mean(axis=0).astype(np.float32),
        max_abs=np.abs(rows).max(axis=0),
        gram=(wide.T @ wide / len(rows)).astype(np.float32) if has_gram else None,
    )


def gram_of(statistics: InputStatistics) -> Floats:
    assert statistics.gram is not None
    return statistics.gram


def output_error(weight: Floats, quantized: NDArray[Any], rows: Floats) -> float:
    """Mean squared error of the outputs, in double precision and without statistics."""
    difference = rows.astype(np.float64) @ (quantized.astype(np.float64) - weight).T
    return float((difference**2).mean())
