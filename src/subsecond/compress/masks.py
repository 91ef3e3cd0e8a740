"""Which weights of a matrix stay: scores by magnitude and by Wanda, masks by row, matrix or group; changes none."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from subsecond.compress.statistics import Floats, InputStatistics
from subsecond.core.errors import InputError

Mask = NDArray[np.bool_]
Scope = Literal["row", "matrix"]


def magnitude_scores(weight: Floats) -> Floats:
    """|W| [out, in]."""
    return _checked(np.abs(weight))


def wanda_scores(weight: Floats, statistics: InputStatistics) -> Floats:
    """|W_ij| * ||x_j||_2 [out, in]: Sun et al. 2023 (Wanda), arXiv 2306.11695, equation 1; compare within rows."""
    if statistics.mean_square.shape != weight.shape[1:]:
        raise InputError(
            f"the statistics are of {statistics.mean_square.shape[0]} inputs; the weight has shape {weight.shape}"
        )
    norms = np.sqrt(statistics.mean_square * np.float32(statistics.num_rows))
    return _checked(np.abs(weight) * norms)


def keep_largest(scores: Floats, density: float, scope: Scope = "row") -> Mask:
    """True for the largest part `density` of each row, or of the whole matrix; of equal scores the first stay.

    A row keeps round(density * inputs), so every row has equally many.
    """
    if not 0 <= density <= 1:
        raise InputError(f"a density of {density} was asked for; allowed is 0 to 1")
    _checked(scores)
    rows = scores if scope == "row" else scores.reshape(1, -1)
    num_kept = round(density * rows.shape[1])
    order = np.argsort(-rows, axis=1, kind="stable")
    mask = np.zeros(rows.shape, np.bool_)
    np.put_along_axis(mask, order[:, :num_kept], values=True, axis=1)
    return mask.reshape(scores.shape)


def keep_in_groups(scores: Floats, num_kept: int = 2, group: int = 4) -> Mask:
    """True for the `num_kept` largest of each `group` neighbours of a row: 2 of 4 is what tensor cores speed up.

    Mishra et al. 2021, arXiv 2104.08378. Processors have no instruction for it; it is meant for export.
    """
    num_inputs = scores.shape[1]
    if not 1 <= num_kept < group or num_inputs % group:
        raise InputError(
            f"{num_kept} of {group} neighbours were to stay in rows of {num_inputs}; needed are fewer than the group "
            "has, and rows that groups divide"
        )
    groups = _checked(scores).reshape(-1, group)
    return keep_largest(groups, num_kept / group).reshape(scores.shape)


def density_of(weight: Floats) -> float:
    """Part of a weight that is not zero."""
    return float(np.count_nonzero(weight)) / weight.size


def _checked(scores: Floats) -> Floats:
    if scores.ndim != 2:
        raise InputError(f"scores have shape {scores.shape}; masks are made of matrices [out, in]")
    if not np.isfinite(scores).all():
        raise InputError("scores are NaN or infinite; the weight or the statistics are damaged")
    return scores
