"""How much of a linear's output a stored weight changes, on the inputs that calibration saw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subsecond.compress.statistics import InputStatistics
from subsecond.formats.gguf_types import TensorType
from subsecond.models.weights import StoredTensor

Floats = NDArray[np.float32]
REPORTED_ROWS = 2048
"""Outputs that a report looks at, evenly spread: of a wide weight all would take as long as rounding it once more."""


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What a method did to one weight.

    bits_per_weight  stored bits, scales included
    relative_error   see `relative_output_error`
    notes            what a reader should know, such as a fallback that was taken
    """

    method: str
    type: TensorType
    bits_per_weight: float
    relative_error: float
    notes: tuple[str, ...] = ()


def relative_output_error(weight: Floats, quantized: Floats, statistics: InputStatistics | None) -> float:
    """sqrt(tr(E G E^T) / tr(W G W^T)) for E = quantized - weight, both [out, in]: rms error of outputs over their rms.

    G is the Gram matrix E[x x^T], its diagonal where only that is known, and the identity without statistics. Outputs
    that are all zero give 0 when they stay so, else infinity.
    """
    error = quantized - weight
    noise, signal = output_power(error, statistics), output_power(weight, statistics)
    if signal == 0:
        return 0.0 if noise == 0 else math.inf
    return math.sqrt(max(noise, 0.0) / signal)


def output_power(weight: Floats, statistics: InputStatistics | None) -> float:
    """tr(W G W^T): the mean over rows of the squared outputs of W [out, in], summed over outputs."""
    if statistics is None:
        return float(np.square(weight, dtype=np.float64).sum())
    if statistics.gram is None:
        squares = np.einsum("oi,oi->i", weight, weight, dtype=np.float64)
        return float(squares @ statistics.mean_square.astype(np.float64))
    # rows are summed in double precision; the products, which are most of the work, in single
    return float(np.einsum("oi,oi->o", weight @ statistics.gram, weight).sum(dtype=np.float64))


def report(
    method: str, weight: Floats, stored: StoredTensor, statistics: InputStatistics | None, notes: tuple[str, ...] = ()
) -> QuantizationReport:
    """The report of `stored`, which `method` made of `weight`."""
    bits = 8.0 * stored.raw.size / weight.size
    stride = -(-len(weight) // REPORTED_ROWS)
    raw = np.ascontiguousarray(stored.raw.reshape(len(weight), -1)[::stride])
    seen = StoredTensor(stored.type, (len(raw), *stored.shape[1:]), raw.reshape(-1))
    error = relative_output_error(weight[::stride], seen.dequantize(), statistics)
    return QuantizationReport(method, stored.type, bits, error, notes)
