"""How much of each layer stays when a model is pruned to one density: more where more outliers are (OWL)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError

OUTLIER_MULTIPLE = 5.0
SPREAD = 0.08


def outlier_part(scores: Sequence[Floats], multiple: float = OUTLIER_MULTIPLE) -> float:
    """Part of a layer's scores, those of all its matrices together, above `multiple` times their mean.

    `scores` are those of Wanda: |W| ||x||. Yin et al. 2023 (OWL), arXiv 2310.05175, equation 1.
    """
    count = sum(each.size for each in scores)
    if not count:
        raise InputError("no scores were given; a layer needs those of at least one matrix")
    mean = sum(float(each.sum(dtype=np.float64)) for each in scores) / count
    if not np.isfinite(mean):
        raise InputError("scores are NaN or infinite; the weights or the statistics are damaged")
    return sum(int(np.count_nonzero(each > multiple * mean)) for each in scores) / count


def layer_densities(
    outlier_parts: Sequence[float], sizes: Sequence[int], density: float, spread: float = SPREAD
) -> NDArray[np.float64]:
    """Density of each layer, so that all layers together have `density`; `sizes` are their numbers of weights.

    They rise with the layer's outliers and lie within 2 * spread of each other: density_l = density +
    2 * spread * (r_l - mean r), r the outlier parts scaled to 0 ... 1 (Yin et al. 2023, arXiv 2310.05175, section 3.2).
    Means are weighted by size. The spread is lowered where a layer would leave 0 ... 1.

    Raises:
        InputError: no layers, numbers that do not fit each other, or that are not allowed.
    """
    parts, weights = np.asarray(outlier_parts, np.float64), np.asarray(sizes, np.float64)
    if parts.shape != weights.shape or parts.ndim != 1 or not len(parts) or not (weights > 0).all():
        raise InputError(f"{parts.shape} outlier parts and {weights.shape} sizes were given; needed is one a layer")
    if not np.isfinite(parts).all() or not 0 < density < 1 or spread < 0:
        raise InputError(f"density {density} with spread {spread} is not possible; allowed are 0 to 1, and 0 or more")
    width = float(parts.max() - parts.min())
    if width == 0:
        return np.full(len(parts), density)
    scaled = (parts - parts.min()) / width
    offsets = scaled - np.average(scaled, weights=weights)
    room = min(density / -offsets.min(), (1 - density) / offsets.max())
    found: NDArray[np.float64] = density + min(2 * spread, room) * offsets
    return found
