"""Searches grids of super-blocks (Q4_K, Q5_K, Q6_K and, where forced, Q3_K, Q2_K); plain groups are `scale_search`.

A super-block of 256 inputs keeps its groups' scales, and minimums where it has them, as small integers times one
float16 number each. First each group is searched alone, then the integers are fixed, then both numbers are refitted by
least squares to the codes that result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from subsecond.compress.rounding import (
    GRID_FORMATS,
    Floats,
    Grid,
    GridFormat,
    check_weight,
    inverse,
    super_grid,
    super_offset_grid,
    to_half,
)
from subsecond.compress.scale_search import (
    SearchOptions,
    for_chunks,
    round_groups,
    search_groups,
    search_offset_groups,
)
from subsecond.formats.gguf_types import SUPER_BLOCK, TensorType


@dataclass(frozen=True, slots=True)
class Multipliers:
    """The integers that group scales are stored as, from `low` to `high`."""

    low: int
    high: int


MULTIPLIERS: Mapping[TensorType, Multipliers] = MappingProxyType(
    {
        TensorType.Q2_K: Multipliers(0, 15),
        TensorType.Q3_K: Multipliers(-32, 31),
        TensorType.Q4_K: Multipliers(0, 63),
        TensorType.Q5_K: Multipliers(0, 63),
        TensorType.Q6_K: Multipliers(-128, 127),
    }
)
NEIGHBOURS = (-1.0, 0.0, 1.0)
"""Integers tried around the one nearest to a group's own scale."""


def search_super_grid(
    weight: Floats, tensor_type: TensorType, importance: Floats, options: SearchOptions | None = None
) -> Grid:
    """The best grid found for `weight` float32 [out, in], `in` a multiple of 256; importance float32 [in]."""
    check_weight(weight, tensor_type)
    options, form = options or SearchOptions(), GRID_FORMATS[tensor_type]
    if form.has_offsets:
        return _search_with_minimums(weight, tensor_type, importance, options)
    return _search_without(weight, tensor_type, importance, options)


def _search_without(weight: Floats, tensor_type: TensorType, importance: Floats, options: SearchOptions) -> Grid:
    form, whole = GRID_FORMATS[tensor_type], MULTIPLIERS[tensor_type]
    num_groups = SUPER_BLOCK // form.group_size
    wanted = search_groups(weight, importance, form, options).reshape(len(weight), -1, num_groups)
    largest = np.take_along_axis(wanted, np.abs(wanted).argmax(axis=-1)[..., None], -1)[..., 0]
    scale = to_half(largest / np.float32(whole.low)).astype(np.float32)
    integers = np.empty(wanted.shape, np.int8)
    refit = np.empty(scale.shape, np.float32)

    def fit(rows: slice, groups: Floats, weights: Floats) -> None:
        chosen, number = _fit_without(groups, weights, wanted[rows].reshape(-1, num_groups), scale[rows], form, whole)
        integers[rows], refit[rows] = chosen.reshape(-1, *wanted.shape[1:]), number.reshape(-1, scale.shape[1])

    for_chunks(weight, importance, form.group_size, fit, num_groups)
    return super_grid(tensor_type, refit, integers)


def _fit_without(
    groups: Floats, weights: Floats, wanted: Floats, scale: Floats, form: GridFormat, whole: Multipliers
) -> tuple[NDArray[np.int8], Floats]:
    """Integers [blocks, groups of a block] and the number [blocks] of some super-blocks."""
    per_group = np.repeat(scale.reshape(-1), wanted.shape[1])
    ideal = np.rint(wanted.reshape(-1) * inverse(per_group))
    fits = _BestFit(groups, weights)
    for step in NEIGHBOURS:
        integer = np.clip(ideal + np.float32(step), whole.low, whole.high)
        fits.consider(integer, per_group * integer, form)
    number, is_better = fits.refit(per_group, wanted.shape[1])
    return fits.integers.reshape(wanted.shape).astype(np.int8), np.where(is_better, number, scale.reshape(-1))


class _BestFit:
    """Of integers tried for every group, those with the least error on what `groups` [size, n] hold."""

    def __init__(self, groups: Floats, weights: Floats) -> None:
        self._groups, self._weights = groups, weights
        self._weighted = groups * weights
        self._codes, self._products = np.empty_like(groups), np.empty_like(groups)
        self._gain = np.full(groups.shape[1], -np.inf, np.float32)
        self.integers = np.zeros_like(self._gain)
        self._fit, self._size = np.zeros_like(self._gain), np.zeros_like(self._gain)

    def consider(self, integers: Floats, scales: Floats, form: GridFormat) -> None:
        """Try these integers, which give `scales`."""
        round_groups(self._groups, inverse(scales), form, self._codes)
        fit = np.add.reduce(np.multiply(self._weighted, self._codes, out=self._products), axis=0)
        np.multiply(self._codes, self._codes, out=self._products)
        size = np.add.reduce(np.multiply(self._products, self._weights, out=self._products), axis=0)
        gain = scales * (2 * fit - scales * size)
        is_better = gain > self._gain
        for kept, found in (
            (self._gain, gain),
            (self.integers, integers),
            (self._fit, fit * integers),
            (self._size, size * integers * integers),
        ):
            np.copyto(kept, found, where=is_better)

    def refit(self, scales: Floats, num_groups: int) -> tuple[Floats, NDArray[np.bool_]]:
        """The least-squares number of every block for the chosen integers and codes, and whether it is one."""
        fit = self._fit.reshape(-1, num_groups).sum(axis=1)
        size = self._size.reshape(-1, num_groups).sum(axis=1)
        number = np.divide(fit, size, out=np.zeros_like(fit), where=size > 0)
        assert scales.size == self._gain.size
        return number, (size > 0) & np.isfinite(number)


def _search_with_minimums(weight: Floats, tensor_type: TensorType, importance: Floats, options: SearchOptions) -> Grid:
    form, whole = GRID_FORMATS[tensor_type], MULTIPLIERS[tensor_type]
    num_groups = SUPER_BLOCK // form.group_size
    scales, offsets = search_offset_groups(weight, importance, form, options, is_below=True)
    wanted, minimums = scales.reshape(len(weight), -1, num_groups), -offsets.reshape(len(weight), -1, num_groups)
    largest = np.stack([wanted.max(axis=-1), minimums.max(axis=-1)]) / np.float32(whole.high)
    numbers: Floats = to_half(largest.astype(np.float32)).astype(np.float32)
    integers = np.empty((2, *wanted.shape), np.uint8)
    refit = np.empty_like(numbers)

    def fit(rows: slice, groups: Floats, weights: Floats) -> None:
        fits = _BestLines(groups, weights, numbers[:, rows].reshape(2, -1), num_groups)
        fits.choose(wanted[rows].reshape(-1), minimums[rows].reshape(-1), form, whole)
        integers[:, rows] = fits.integers.reshape(2, -1, *wanted.shape[1:]).astype(np.uint8)
        refit[:, rows] = fits.refit().reshape(2, -1, wanted.shape[1])

    for_chunks(weight, importance, form.group_size, fit, num_groups)
    return super_offset_grid(tensor_type, refit[0], refit[1], integers[0], integers[1])


class _BestLines:
    """Pairs of integers for scale and minimum of every group, of those tried the ones with the least error.

    numbers  float32 [2, blocks]: what the integers of scales and of minimums are multiplied with
    """

    def __init__(self, groups: Floats, weights: Floats, numbers: Floats, num_groups: int) -> None:
        self._groups, self._weights = groups, weights
        self._weighted = groups * weights
        self._numbers, self._num_groups = numbers, num_groups
        self._per_group = np.repeat(numbers, num_groups, axis=1)
        self._codes, self._products = np.empty_like(groups), np.empty_like(groups)
        self._weight_sum, self._value_sum = np.add.reduce(weights, axis=0), np.add.reduce(self._weighted, axis=0)
        self._error = np.full(groups.shape[1], np.inf, np.float32)
        self.integers = np.zeros((2, groups.shape[1]), np.float32)
        self._sums = np.zeros((3, groups.shape[1]), np.float32)  # of h q, h q^2 and h w q

    def choose(self, scales: Floats, minimums: Floats, form: GridFormat, whole: Multipliers) -> None:
        """Try the integers next to each group's own scale, each with the minimum that suits its codes."""
        scale, minimum = self._per_group
        inverse_minimum = inverse(minimum)
        ideal = np.rint(scales * inverse(scale))
        nearest = np.clip(np.rint(minimums * inverse_minimum), whole.low, whole.high)
        for step in NEIGHBOURS:
            integer = np.clip(ideal + np.float32(step), whole.low, whole.high)
            sums = self._consider(integer, nearest, form)
            # the best minimum for these codes: minus the mean of what is left of w
            left = (scale * integer * sums[0] - self._value_sum) / self._weight_sum
            suited = np.clip(np.rint(left * inverse_minimum), whole.low, whole.high)
            self._consider(integer, suited, form)

    def _consider(self, integers: Floats, minimum_integers: Floats, form: GridFormat) -> Floats:
        scale, minimum = self._per_group[0] * integers, self._per_group[1] * minimum_integers
        np.add(self._groups, minimum, out=self._codes)
        round_groups(self._codes, inverse(scale), form, self._codes)
        code_sum = np.add.reduce(np.multiply(self._codes, self._weights, out=self._products), axis=0)
        square_sum = np.add.reduce(np.multiply(self._products, self._codes, out=self._products), axis=0)
        product_sum = np.add.reduce(np.multiply(self._weighted, self._codes, out=self._products), axis=0)
        # sum h (w - scale q + minimum)^2 less sum h w^2
        error = scale * (scale * square_sum - 2 * product_sum) + 2 * minimum * self._value_sum
        error += minimum * (minimum * self._weight_sum - 2 * scale * code_sum)
        sums = np.stack([code_sum, square_sum, product_sum])
        is_better = error < self._error
        np.copyto(self._error, error, where=is_better)
        np.copyto(self.integers, np.stack([integers, minimum_integers]), where=is_better)
        np.copyto(self._sums, sums, where=is_better)
        return sums

    def refit(self) -> Floats:
        """Numbers [2, blocks] that suit the chosen integers and codes by least squares; as they were where none do."""
        a, b = self.integers.astype(np.float64)
        code_sum, square_sum, product_sum = self._sums.astype(np.float64)
        terms = np.stack(
            [a * a * square_sum, -a * b * code_sum, b * b * self._weight_sum, a * product_sum, -b * self._value_sum]
        )
        xx, xy, yy, xw, yw = terms.reshape(5, -1, self._num_groups).sum(axis=-1)
        with np.errstate(all="ignore"):
            determinant = xx * yy - xy * xy
            both = np.stack([(yy * xw - xy * yw), (xx * yw - xy * xw)]) / determinant
            alone = np.stack([xw / xx, np.zeros_like(xx)])
        is_pair = (determinant > 1e-9 * xx * yy) & np.isfinite(both).all(axis=0) & (both >= 0).all(axis=0)
        is_alone = ~is_pair & (yy == 0) & np.isfinite(alone[0]) & (alone[0] > 0)
        return np.where(is_pair, both, np.where(is_alone, alone, self._numbers)).astype(np.float32)
