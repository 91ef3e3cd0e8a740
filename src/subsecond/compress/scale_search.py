"""Searches the scales of groups that lose least on the inputs seen; rounds to the nearest and changes no other weight.

Per group of a row it minimises sum_j h_j (w_j - Q(w_j))^2 with h_j = E[x_j^2], over candidate scales, each followed by
the least-squares scale of its codes. For codes q without offset that is s = sum h w q / sum h q^2, and the error falls
by (sum h w q)^2 / sum h q^2.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subsecond.compress.rounding import (
    GRID_FORMATS,
    Floats,
    Grid,
    GridFormat,
    check_weight,
    offset_grid,
    plain_grid,
)
from subsecond.compress.statistics import InputStatistics
from subsecond.core.errors import InputError
from subsecond.formats.gguf_types import TensorType

CHUNK = 1 << 16
"""Weights that a thread searches at a time; its arrays stay in cache."""
DEAD_SHARE = 1e-4
"""Of the mean importance that every input gets on top, so that inputs never seen are rounded sensibly."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Candidates that a search tries.

    num_candidates  for each sign of the scale; with offsets, in all
    least, most     their range, as shares of the scale at which the largest weight of a group is not clipped
    num_refits      rounds of rounding and refitting that follow
    """

    num_candidates: int = 16
    least: float = 0.7
    most: float = 1.1
    num_refits: int = 2

    def __post_init__(self) -> None:
        if not (1 <= self.num_candidates <= 1000 and 0 < self.least <= self.most <= 2 and 0 <= self.num_refits <= 100):
            raise InputError(
                f"{self} is not allowed: num_candidates from 1 to 1000, 0 < least <= most <= 2, num_refits up to 100"
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """The candidates, the unclipped scale first where it is among them."""
        return tuple(float(share) for share in np.linspace(self.most, self.least, self.num_candidates))


def importance_of(statistics: InputStatistics | None, width: int) -> Floats:
    """Weights h [width] of the squared errors of each input's weights, mean 1; all 1 without statistics.

    InputError for statistics of another width, or that are not finite.
    """
    if statistics is None:
        return np.ones(width, np.float32)
    if statistics.mean_square.shape != (width,):
        raise InputError(f"statistics of {statistics.mean_square.shape} inputs do not belong to a weight of {width}")
    squares = statistics.mean_square.astype(np.float64)
    mean = float(squares.mean())
    if not np.isfinite(mean) or squares.min() < 0:
        raise InputError("the statistics of an input hold inf, nan or negative squares; collect them again")
    if mean == 0:
        return np.ones(width, np.float32)
    relative = squares / mean + DEAD_SHARE
    importance: Floats = (relative / relative.mean()).astype(np.float32)
    return importance


def search_grid(
    weight: Floats, tensor_type: TensorType, importance: Floats, options: SearchOptions | None = None
) -> Grid:
    """The best grid found for `weight` float32 [out, in] in a type of plain groups; super-blocks have their own search.

    importance  float32 [in], see `importance_of`
    """
    check_weight(weight, tensor_type)
    form, options = GRID_FORMATS[tensor_type], options or SearchOptions()
    if form.has_offsets:
        scales, offsets = search_offset_groups(weight, importance, form, options)
        return offset_grid(scales, offsets)
    return plain_grid(tensor_type, search_groups(weight, importance, form, options))


def search_groups(weight: Floats, importance: Floats, form: GridFormat, options: SearchOptions) -> Floats:
    """Scales float32 [out, groups] of formats without offsets; of both signs where codes reach further down than up."""
    scales = np.empty((len(weight), weight.shape[1] // form.group_size), np.float32)

    def search(rows: slice, groups: Floats, weights: Floats) -> None:
        scales[rows] = _search_scales(groups, weights, form, options).reshape(-1, scales.shape[1])

    for_chunks(weight, importance, form.group_size, search)
    return scales


def search_offset_groups(
    weight: Floats, importance: Floats, form: GridFormat, options: SearchOptions, *, is_below: bool = False
) -> tuple[Floats, Floats]:
    """Scales and offsets float32 [out, groups]; `is_below` holds offsets to 0 and less, as super-blocks store them."""
    scales = np.empty((len(weight), weight.shape[1] // form.group_size), np.float32)
    offsets = np.empty_like(scales)

    def search(rows: slice, groups: Floats, weights: Floats) -> None:
        found = _search_lines(groups, weights, form, options, is_below=is_below)
        scales[rows], offsets[rows] = (part.reshape(-1, scales.shape[1]) for part in found)

    for_chunks(weight, importance, form.group_size, search)
    return scales, offsets


def for_chunks(
    weight: Floats, importance: Floats, size: int, run: Callable[[slice, Floats, Floats], None], num_columns: int = 1
) -> None:
    """Call `run`(rows, groups, weights) for chunks of rows, on all processors; results depend on neither.

    groups   float32 [size, rows * groups of a row]: a group is a column, so that sums over it are sums of rows
    weights  the importance in the same form
    num_columns  that belong together and are not cut: groups of a super-block
    """
    num_rows, width = weight.shape
    step = max(1, CHUNK // width)
    spread = np.tile(importance.reshape(-1, size).T, (1, step)).astype(np.float32)

    def run_chunk(start: int) -> None:
        rows = slice(start, min(start + step, num_rows))
        groups = np.ascontiguousarray(weight[rows].reshape(-1, size).T)
        run(rows, groups, np.ascontiguousarray(spread[:, : groups.shape[1]]))

    assert (width // size) % num_columns == 0, "a row has no whole super-blocks"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run_chunk, range(0, num_rows, step)))


def round_groups(groups: Floats, inverses: Floats, form: GridFormat, out: Floats) -> Floats:
    """Codes as float32 of groups [size, n] divided by their scales, 1 / `inverses` [n]."""
    np.multiply(groups, inverses, out=out)
    np.rint(out, out=out)
    np.maximum(out, np.float32(form.low), out=out)
    return np.minimum(out, np.float32(form.high), out=out)


def _search_scales(groups: Floats, weights: Floats, form: GridFormat, options: SearchOptions) -> Floats:
    weighted = groups * weights
    codes, products = np.empty_like(groups), np.empty_like(groups)
    index = np.abs(groups).argmax(axis=0)
    largest: Floats = np.take_along_axis(groups, index[None], 0)[0]
    best_gain: Floats = np.zeros_like(largest)
    best: Floats = np.zeros_like(largest)

    def try_scales(inverses: Floats) -> None:
        round_groups(groups, inverses, form, codes)
        np.multiply(weighted, codes, out=products)
        fit = np.add.reduce(products, axis=0)
        np.multiply(codes, codes, out=products)
        np.multiply(products, weights, out=products)
        size = np.add.reduce(products, axis=0)
        refit = np.divide(fit, size, out=np.zeros_like(fit), where=size > 0)
        gain = refit * fit
        is_better = (gain > best_gain) & np.isfinite(refit)
        np.copyto(best_gain, gain, where=is_better)
        np.copyto(best, refit, where=is_better)

    limits = (form.low,) if form.low == -form.high else (form.low, form.high)
    with np.errstate(all="ignore"):
        for limit in limits:
            for share in options.shares:
                try_scales(_finite(np.float32(limit / share) / largest))
        for _ in range(options.num_refits):
            try_scales(_finite(np.float32(1) / best))
    return best


def _search_lines(
    groups: Floats, weights: Floats, form: GridFormat, options: SearchOptions, *, is_below: bool
) -> tuple[Floats, Floats]:
    """As `_search_scales` with an offset: for given codes a weighted straight line w = scale * q + offset."""
    weighted = groups * weights
    codes, products, shifted = np.empty_like(groups), np.empty_like(groups), np.empty_like(groups)
    weight_sum, value_sum = np.add.reduce(weights, axis=0), np.add.reduce(weighted, axis=0)
    lowest, highest = groups.min(axis=0), groups.max(axis=0)
    if is_below:
        lowest = np.minimum(lowest, 0)
    best_gain = np.full_like(lowest, -np.inf)
    scales, offsets = np.zeros_like(lowest), np.zeros_like(lowest)

    def try_lines(inverses: Floats, start: Floats) -> None:
        np.subtract(groups, start, out=shifted)
        round_groups(shifted, inverses, form, codes)
        code_sum = np.add.reduce(np.multiply(codes, weights, out=products), axis=0)
        square_sum = np.add.reduce(np.multiply(products, codes, out=products), axis=0)
        product_sum = np.add.reduce(np.multiply(weighted, codes, out=products), axis=0)
        determinant = weight_sum * square_sum - code_sum * code_sum
        scale = (weight_sum * product_sum - value_sum * code_sum) / determinant
        offset = (square_sum * value_sum - code_sum * product_sum) / determinant
        if is_below:
            is_above = ~(offset <= 0)
            scale = np.where(is_above, product_sum / square_sum, scale)
            offset = np.where(is_above, np.float32(0), offset)
        # the squared error less sum h w^2, which all candidates share
        gain = 2 * (scale * product_sum + offset * value_sum)
        gain -= scale * (scale * square_sum + 2 * offset * code_sum) + offset * offset * weight_sum
        is_better = (gain > best_gain) & np.isfinite(scale) & np.isfinite(offset) & (scale > 0)
        for kept, found in ((best_gain, gain), (scales, scale), (offsets, offset)):
            np.copyto(kept, found.astype(np.float32, copy=False), where=is_better)

    with np.errstate(all="ignore"):
        for share in options.shares:
            try_lines(_finite(np.float32((form.num_codes - 1) / share) / (highest - lowest)), lowest)
        for _ in range(options.num_refits):
            try_lines(_finite(np.float32(1) / scales), offsets.copy())
    # groups of one value are all offset; below it that works for negative ones only
    is_constant = ~np.isfinite(best_gain)
    level = np.where(is_constant, value_sum / weight_sum, offsets).astype(np.float32)
    return _levels(scales, level, is_constant, form, is_below=is_below)


def _levels(
    scales: Floats, offsets: Floats, is_constant: NDArray[np.bool_], form: GridFormat, *, is_below: bool
) -> tuple[Floats, Floats]:
    """Scales and offsets, those of constant groups as a line that passes through their only value."""
    if is_below:
        is_positive = is_constant & (offsets > 0)
        scales = np.where(is_positive, offsets / np.float32(form.high), scales)
        offsets = np.where(is_positive, np.float32(0), offsets)
    return scales.astype(np.float32), offsets.astype(np.float32)


def _finite(inverses: Floats) -> Floats:
    inverses[~np.isfinite(inverses)] = 0
    return inverses
