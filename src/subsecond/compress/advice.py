"""Says whether sparse weights make decoding faster than eight or four bits here, and what density that would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from subsecond.core.errors import InputError

BYTES_PER_WEIGHT: Mapping[str, float] = {"f16": 2.0, "int8": 1.0, "int4": 4.125 / 8}
"""Of a weight that decoding reads; scales of whole rows are not counted."""

_BITMAP_BYTES, _VALUE_BYTES = 1 / 8, 2.0


def sparse_bytes_per_weight(density: float) -> float:
    """The fewest bytes that are read: a bit that says whether the weight is there, and two bytes where it is."""
    return _BITMAP_BYTES + _VALUE_BYTES * density


@dataclass(frozen=True, slots=True)
class Comparison:
    """Sparse weights beside another format: `ratio` is its time divided by that of sparse ones, above 1 if those win.

    `needed_density` is the density below which sparse weights win; None where they never do.
    """

    format: str
    ratio: float
    needed_density: float | None


@dataclass(frozen=True, slots=True)
class Advice:
    """What sparse weights of one density are worth in decoding; `basis` is "measured" or "bytes"."""

    density: float
    basis: str
    comparisons: tuple[Comparison, ...]

    def sentences(self) -> list[str]:
        """One plain sentence for each other format."""
        measured = "measured here" if self.basis == "measured" else "expected from the bytes to read"
        found = []
        for each in self.comparisons:
            if each.ratio > 1:
                verdict = f"{each.ratio:.2f} times as fast as {each.format}"
            else:
                verdict = f"slower than {each.format}, at {each.ratio:.2f} of its speed"
            if each.needed_density is None:
                needed = "no density makes them faster"
            else:
                needed = f"they are faster below a density of {each.needed_density:.0%}"
            where = f"linears of layers, one sequence, {measured}"
            found.append(f"Sparse weights with {self.density:.0%} left are {verdict} ({where}); {needed}.")
        return found


def advise(
    density: float,
    *,
    sparse_seconds: Mapping[float, float] | None = None,
    other_seconds: Mapping[str, float] | None = None,
) -> Advice:
    """Advice from measured seconds of a model's linears for one row, or from bytes where none were measured.

    sparse_seconds  by density, at least two; the time between them is a straight line, beyond them the line through the
                    two outermost on that side
    other_seconds   by format, such as "int8" and "int4"

    Raises:
        InputError: a density is not from 0 to 1, times are not positive, or only one kind of times was given.
    """
    if not 0 <= density <= 1:
        raise InputError(f"a density of {density} was asked for; allowed is 0 to 1")
    if (sparse_seconds is None) != (other_seconds is None):
        raise InputError("times of sparse weights and of other formats are compared; give both or none")
    basis = "bytes" if sparse_seconds is None else "measured"
    if sparse_seconds is None or other_seconds is None:
        sparse_seconds = {each: sparse_bytes_per_weight(each) for each in (0.0, 1.0)}
        other_seconds = {name: BYTES_PER_WEIGHT[name] for name in ("int8", "int4")}
    times = (*sparse_seconds.values(), *other_seconds.values())
    if len(sparse_seconds) < 2 or not all(np.isfinite(each) and each > 0 for each in times):
        raise InputError("times must be positive, and those of sparse weights measured at two densities or more")
    densities = np.array(sorted(sparse_seconds))
    seconds = np.maximum.accumulate([sparse_seconds[each] for each in densities])  # more weights never take less time
    own = _at(density, densities, seconds)
    comparisons = tuple(
        Comparison(name, other / own, _needed(other, densities, seconds)) for name, other in other_seconds.items()
    )
    return Advice(density, basis, comparisons)


def _at(density: float, densities: np.ndarray, seconds: np.ndarray) -> float:
    """Time at a density, by the piece of the line that it lies on or beyond; never less than nothing."""
    piece = int(np.clip(np.searchsorted(densities, density) - 1, 0, len(densities) - 2))
    slope = (seconds[piece + 1] - seconds[piece]) / (densities[piece + 1] - densities[piece])
    return max(float(seconds[piece] + slope * (density - densities[piece])), float(seconds[0]) * 1e-3)


def _needed(other: float, densities: np.ndarray, seconds: np.ndarray) -> float | None:
    """The largest density whose time is at most `other`; None where not even an empty weight is as fast."""
    if _at(0.0, densities, seconds) > other:
        return None
    low, high = 0.0, 1.0
    if _at(high, densities, seconds) <= other:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _at(middle, densities, seconds) <= other else (low, middle)
    return low
