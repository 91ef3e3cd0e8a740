"""HQQ: fits the zeros of four-bit groups without any data; the result can be stored as Q4_1 and as (scale, zero).

Badri and Shaji 2023, "Half-quadratic quantization of large machine learning models": minimise ||W - Q(W)||_p with
p < 1, which tolerates outliers, by alternating W_e <- shrink_p(W - Q(W)) and z <- mean(q - (W - W_e) / s). Here errors
are counted in steps of a group's own grid, so that scaled weights have scaled results; and zeros are integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from subsecond.compress.output_error import QuantizationReport, report
from subsecond.compress.rounding import (
    GRID_FORMATS,
    Floats,
    Grid,
    check_weight,
    inverse,
    offset_grid,
    round_to_nearest,
)
from subsecond.compress.scale_search import for_chunks
from subsecond.compress.statistics import InputStatistics
from subsecond.core.errors import InputError
from subsecond.formats.gguf_types import TensorType
from subsecond.models.weights import StoredTensor

SCALE_BITS = 7
"""Significant bits of a scale: its product with a zero of four bits then has eleven, which float16 holds exactly."""
LEAST_ERROR = 1e-8  # of a weight in steps, where |error|^(p - 1) would overflow


@dataclass(frozen=True, slots=True)
class HqqOptions:
    """p of the norm, weight of the quadratic term, its growth and the most iterations."""

    p: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    num_iterations: int = 20

    def __post_init__(self) -> None:
        if not (0 < self.p <= 1 and self.beta > 0 and self.kappa >= 1 and 1 <= self.num_iterations <= 1000):
            raise InputError(
                f"{self} is not allowed: p above 0 and up to 1, beta above 0, kappa from 1, num_iterations 1 to 1000"
            )


def hqq(
    weight: Floats, options: HqqOptions | None = None, statistics: InputStatistics | None = None
) -> tuple[StoredTensor, QuantizationReport]:
    """`weight` float32 [out, in] as Q4_1 with minimum = -scale * zero, zero an integer from 0 to 15, all exact.

    The weights alone decide; `statistics` serve the report.
    """
    stored = round_to_nearest(weight, hqq_grid(weight, options))
    return stored, report("hqq", weight, stored, statistics)


def hqq_grid(weight: Floats, options: HqqOptions | None = None) -> Grid:
    """The grid of `hqq`."""
    check_weight(weight, TensorType.Q4_1)
    options, size = options or HqqOptions(), GRID_FORMATS[TensorType.Q4_1].group_size
    scales = np.empty((len(weight), weight.shape[1] // size), np.float32)
    zeros = np.empty_like(scales)

    def fit(rows: slice, groups: Floats, weights: Floats) -> None:  # noqa: ARG001 (all inputs count alike)
        found = _fit(groups, options)
        scales[rows], zeros[rows] = (part.reshape(-1, scales.shape[1]) for part in found)

    for_chunks(weight, np.ones(weight.shape[1], np.float32), size, fit)
    return offset_grid(scales, -scales * zeros)


def _fit(groups: Floats, options: HqqOptions) -> tuple[Floats, Floats]:
    """Scales and integer zeros [n] of groups [size, n]."""
    high = np.float32(GRID_FORMATS[TensorType.Q4_1].high)
    lowest, highest = np.minimum(groups.min(axis=0), 0), np.maximum(groups.max(axis=0), 0)
    scales = short_scales((highest - lowest) / high)
    inverses = inverse(scales)
    in_steps = groups * inverses
    zeros = -lowest * inverses
    best, best_error = np.rint(zeros), _error(in_steps, np.rint(zeros), options.p)
    beta = options.beta
    for _ in range(options.num_iterations):
        codes = np.clip(np.rint(in_steps + zeros), 0, high)
        left = in_steps - (codes - zeros)
        size = np.maximum(np.abs(left), np.float32(LEAST_ERROR))
        outlying = np.sign(left) * np.maximum(size - size ** np.float32(options.p - 1) / np.float32(beta), 0)
        zeros = (codes - (in_steps - outlying)).mean(axis=0)
        beta *= options.kappa
        whole = np.clip(np.rint(zeros), 0, high)
        error = _error(in_steps, whole, options.p)
        is_better = error < best_error
        if not is_better.any():
            break
        best, best_error = np.where(is_better, whole, best), np.where(is_better, error, best_error)
    return scales, best.astype(np.float32)


def _error(in_steps: Floats, zeros: Floats, p: float) -> Floats:
    """Sum of |error|^p over each group."""
    codes = np.clip(np.rint(in_steps + zeros), 0, GRID_FORMATS[TensorType.Q4_1].high)
    total: Floats = (np.abs(in_steps - (codes - zeros)) ** np.float32(p)).sum(axis=0)
    return total


def short_scales(scales: Floats) -> Floats:
    """Scales, none negative, rounded up to SCALE_BITS significant bits and then to float16."""
    fraction, exponent = np.frexp(scales)
    steps = np.float32(2**SCALE_BITS)
    rounded = np.ldexp(np.ceil(fraction * steps) / steps, exponent)
    # where float16 is denormal it has fewer bits yet
    result: Floats = rounded.astype(np.float16).astype(np.float32)
    return result
