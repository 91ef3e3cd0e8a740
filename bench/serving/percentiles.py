"""Percentiles of samples, and how well two samples can be told apart; knows nothing of what was measured."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values lie below, between neighbours in proportion; NaN without values."""
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is not between 0 and 1")
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def area_under_curve(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The probability that a positive is above a negative, ties counted half: 0.5 if they cannot be told apart."""
    if not positives or not negatives:
        raise ValueError("both samples need at least one value")
    ordered = sorted(negatives)
    wins = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in positives)
    return wins / (2 * len(positives) * len(negatives))


def area_standard_error(num_positives: int, num_negatives: int) -> float:
    """How far the area strays from 0.5 by chance alone when the two samples come from one distribution."""
    return math.sqrt((num_positives + num_negatives + 1) / (12 * num_positives * num_negatives))
