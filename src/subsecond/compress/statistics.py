"""What calibration saw of the inputs of linears, shared by all methods; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subsecond.core.errors import FormatError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class InputStatistics:
    """Of the rows x float32 [inputs] of a value that linears read.

    num_rows     rows that were seen
    mean         E[x] [inputs]
    mean_square  E[x^2] [inputs]
    mean_abs     E[|x|] [inputs]
    max_abs      largest |x| [inputs]
    gram         E[x x^T] [inputs, inputs]; None where it was not asked for
    """

    num_rows: int
    mean: Floats
    mean_square: Floats
    mean_abs: Floats
    max_abs: Floats
    gram: Floats | None = None


class StatisticsSum:
    """Sums up rows, chunk by chunk; in float64, but for the Gram matrix, whose chunks are float32 products."""

    def __init__(self, num_inputs: int, *, has_gram: bool) -> None:
        self._num_rows = 0
        self._sum, self._square, self._abs = (torch.zeros(num_inputs, dtype=torch.float64) for _ in range(3))
        self._max = torch.zeros(num_inputs)
        self._gram = torch.zeros((num_inputs, num_inputs)) if has_gram else None

    def add(self, rows: Tensor) -> None:
        """Take up rows float32 [rows, inputs]; FormatError when one is not finite."""
        sizes = rows.abs()
        self._max = torch.maximum(self._max, sizes.amax(dim=0))
        if not torch.isfinite(self._max).all():
            raise FormatError("values that are not finite reached a linear; the weights before it are damaged")
        self._num_rows += len(rows)
        self._sum += rows.sum(dim=0, dtype=torch.float64)
        self._abs += sizes.sum(dim=0, dtype=torch.float64)
        self._square += rows.square().sum(dim=0, dtype=torch.float64)
        if self._gram is not None:
            self._gram.addmm_(rows.T, rows)

    def statistics(self) -> InputStatistics:
        """What was seen so far, at least one row."""
        assert self._num_rows > 0, "statistics of no rows"
        count = self._num_rows
        mean, square, absolute = ((each / count).float().numpy() for each in (self._sum, self._square, self._abs))
        gram = None if self._gram is None else (self._gram / count).numpy()
        return InputStatistics(count, mean, square, absolute, self._max.numpy(), gram)
