"""What calibration saw of the inputs of linears, shared by all methods; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
