"""GPTQ: rounds a weight input by input, later inputs making up for the errors of earlier ones; searches no scale.

Frantar et al. 2022, arXiv 2210.17323, with static groups and activation order: scales are fixed beforehand in the
original groups, and inputs are taken in order of falling E[x^2], so that the result is an ordinary grid. With
H = (U + I) D (U + I)^T, U strictly upper triangular, the rule is

    q_k = Q(w_k + sum_{i<k} (w_i - q_i) U_ik)

(Chee et al. 2023, arXiv 2307.13304, theorem 6, who call it LDLQ). It gives the rounding of the original, which works
on the Cholesky factor of the inverse of H, from one factorization of H instead of two and an inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from subsecond.compress.output_error import QuantizationReport, report
from subsecond.compress.rounding import (
    PLAIN_TYPES,
    Codes,
    Floats,
    Grid,
    check_weight,
    inverse,
    plain_grid,
    round_to_nearest,
)
from subsecond.compress.statistics import InputStatistics
from subsecond.core.errors import InputError
from subsecond.models.weights import StoredTensor

BLOCK = 128  # inputs whose errors reach the inputs after them in one product
DOUBLE_LIMIT = 4096  # inputs up to which the factorization is done in double precision
NUM_TRIES = 4  # of ever larger damping


@dataclass(frozen=True, slots=True)
class GptqOptions:
    """How inputs make up for errors.

    damping     share of the mean of diag(H) that is added to it; ten times as much after every failed factorization
    num_sweeps  of coordinate descent that follow: the scale of every group is refitted where it is a number of its own,
                then every code is rounded again, given all others (Behdin et al. 2023, arXiv 2309.01885). tr(E H E^T)
                never rises by it
    """

    damping: float = 0.01
    num_sweeps: int = 2

    def __post_init__(self) -> None:
        if not (0 < self.damping <= 1 and 0 <= self.num_sweeps <= 100):
            raise InputError(f"{self} is not allowed: damping above 0 and up to 1, num_sweeps from 0 to 100")


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """What all weights that read one input share.

    order    int64 [in]: the inputs in order of falling E[x^2]
    hessian  float32 [in, in]: H in that order, damped
    upper    float32 [in, in]: U + I
    pivots   float32 [in]: D
    notes    of more damping than asked for
    """

    order: Tensor
    hessian: Tensor
    upper: Tensor
    pivots: Tensor
    notes: tuple[str, ...]

    @property
    def importance(self) -> Floats:
        """What an error of rounding each input costs when later inputs make up for it: D in the inputs' own order.

        tr(E H E^T) is the sum of D_k times the squared error of w_k against what q_k was rounded from. Mean 1.
        """
        found = np.empty(len(self.pivots), np.float32)
        found[self.order.numpy()] = self.pivots.numpy()
        return found / np.float32(found.mean(dtype=np.float64))

    def share_left(self, error: Floats) -> float:
        """The part of the power tr(E H E^T) of rounding errors E float32 [out, in] for which no later input makes up.

        It is little where inputs are alike, and nearly all where each says something of its own.
        """
        E = torch.from_numpy(error)[:, self.order]
        whole = float(((E @ self.hessian) * E).sum(dtype=torch.float64))
        left = float((E.square().sum(dim=0) * self.pivots).sum(dtype=torch.float64))
        return min(1.0, left / whole) if whole > 0 else 1.0


def factorize(statistics: InputStatistics, options: GptqOptions | None = None) -> Factor | None:
    """The factor of an input; None where no damping makes its Gram matrix positive definite.

    Inputs that were never other than 0 are left to plain rounding: H is diagonal there.
    """
    options = options or GptqOptions()
    if statistics.gram is None:
        raise InputError("GPTQ needs the Gram matrix of the inputs; collect statistics with has_gram")
    gram = torch.from_numpy(np.ascontiguousarray(statistics.gram))
    diagonal = gram.diagonal()
    if not bool(torch.isfinite(gram).all()) or bool((diagonal < 0).any()):
        raise InputError("the Gram matrix of an input holds inf, nan or a negative diagonal; collect it again")
    order = torch.sort(diagonal, descending=True, stable=True).indices
    mean = float(diagonal.to(torch.float64).mean())
    if mean == 0.0:
        return None
    ordered = gram[order][:, order]
    notes: tuple[str, ...] = ()
    damping = options.damping
    for _ in range(NUM_TRIES):
        hessian = ordered.clone()
        hessian.diagonal().add_(damping * mean)
        found = _decompose(hessian)
        if found is not None:
            return Factor(order, hessian, *found, notes)
        damping *= 10
        notes = (f"the Gram matrix was not positive definite; damped by {damping:g} of its mean",)
    return None


def _decompose(hessian: Tensor) -> tuple[Tensor, Tensor] | None:
    """U + I and D of H = (U + I) D (U + I)^T, from the Cholesky factor of H with its inputs turned round."""
    dtype = torch.float64 if len(hessian) <= DOUBLE_LIMIT else torch.float32
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1).to(dtype))
    if int(failed) or not bool(torch.isfinite(lower.diagonal()).all()):
        return None
    upper = lower.flip(0, 1)
    roots = upper.diagonal().clone()
    return upper.div_(roots).to(torch.float32).contiguous(), roots.square().to(torch.float32)


def gptq(
    weight: Floats,
    statistics: InputStatistics,
    grid: Grid,
    options: GptqOptions | None = None,
    factor: Factor | None = None,
) -> tuple[StoredTensor, QuantizationReport]:
    """Round `weight` float32 [out, in] to `grid`.

    factor  that `factorize` gave for these statistics, for weights that share an input

    Where H cannot be factorized the weight is rounded to the nearest, which the report notes.
    """
    options = options or GptqOptions()
    check_weight(weight, grid.type)
    if statistics.mean_square.shape != (weight.shape[1],):
        raise InputError(
            f"statistics of {statistics.mean_square.shape[0]} inputs do not belong to a weight of {weight.shape[1]}"
        )
    factor = factor or factorize(statistics, options)
    if factor is None:
        notes: tuple[str, ...] = ("H could not be factorized (no input, or not positive definite): rounded to nearest",)
        stored = round_to_nearest(weight, grid)
        return stored, report("gptq", weight, stored, statistics, notes)
    rounding = _Rounding(weight, grid, factor)
    rounding.run(options.num_sweeps)
    stored = rounding.grid.store(rounding.codes)
    return stored, report("gptq", weight, stored, statistics, factor.notes)


def gptq_targets(weight: Floats, grid: Grid, factor: Factor, options: GptqOptions | None = None) -> tuple[Grid, Floats]:
    """The grid, and what `gptq` rounds to it in the end, float32 [out, in]: a start for learned rounding.

    Rounding the targets to the nearest gives the codes of `gptq`.
    """
    check_weight(weight, grid.type)
    rounding = _Rounding(weight, grid, factor)
    rounding.run((options or GptqOptions()).num_sweeps)
    return rounding.grid, rounding.targets


class _Rounding:
    """Weight, grid and codes with inputs as rows, in the order of the factor: one input's weights lie together."""

    def __init__(self, weight: Floats, grid: Grid, factor: Factor) -> None:
        self._factor, self._grid = factor, grid
        form = grid.format
        self._low, self._high = float(form.low), float(form.high)
        self._weight = torch.from_numpy(np.ascontiguousarray(weight.T))[factor.order]
        self._groups = (factor.order // form.group_size).tolist()
        self._scales = torch.from_numpy(np.ascontiguousarray(grid.scales.T))
        self._inverses = torch.from_numpy(np.ascontiguousarray(inverse(grid.scales).T))
        self._offsets = None if grid.offsets is None else torch.from_numpy(np.ascontiguousarray(grid.offsets.T))
        self._codes = torch.empty_like(self._weight)
        self._error = torch.empty_like(self._weight)  # weight less value
        self._targets = torch.empty_like(self._weight)

    def run(self, num_sweeps: int) -> None:
        """Choose all codes."""
        self._feed_errors_forward()
        has_own_scales = self._grid.type in PLAIN_TYPES
        for _ in range(num_sweeps):
            if has_own_scales:
                self._refit_scales()
            self._descend()
        if has_own_scales and num_sweeps:
            self._grid = plain_grid(self._grid.type, np.ascontiguousarray(self._scales.numpy().T))

    @property
    def grid(self) -> Grid:
        """The grid, with other scales where they were refitted."""
        return self._grid

    @property
    def codes(self) -> Codes:
        """Codes int8 [out, in] in the inputs' own order."""
        codes = np.empty(self._grid.shape, np.int8)
        codes[:, self._factor.order.numpy()] = self._codes.numpy().T.astype(np.int8)
        return codes

    @property
    def targets(self) -> Floats:
        """What the codes were rounded from, float32 [out, in] in the inputs' own order."""
        targets = np.empty(self._grid.shape, np.float32)
        targets[:, self._factor.order.numpy()] = self._targets.numpy().T
        return targets

    def _feed_errors_forward(self) -> None:
        upper, width = self._factor.upper, len(self._weight)
        for start in range(0, width, BLOCK):
            end = min(start + BLOCK, width)
            target = self._weight[start:end].clone()
            target.addmm_(upper[:start, start:end].T, self._error[:start])
            inside = upper[start:end, start:end].T.contiguous()
            for k in range(end - start):
                wanted = target[k]
                if k:
                    wanted = torch.addmv(wanted, self._error[start : start + k].T, inside[k, :k])
                self._round(start + k, wanted)

    def _descend(self) -> None:
        """One pass of coordinate descent on tr(E H E^T) over all inputs, in their order."""
        hessian, width = self._factor.hessian, len(self._weight)
        for start in range(0, width, BLOCK):
            end = min(start + BLOCK, width)
            columns = hessian[start:end]
            gradient = columns @ self._error
            inside = columns[:, start:end]
            moved = torch.zeros_like(gradient)  # change of the errors of this block so far
            for k in range(end - start):
                slope = gradient[k]
                if k:
                    slope = torch.addmv(slope, moved[:k].T, inside[k, :k])
                before = self._error[start + k].clone()
                # the value that cancels the slope, given the errors of all other inputs
                wanted = (self._weight[start + k] - before).add_(slope, alpha=1.0 / float(inside[k, k]))
                self._round(start + k, wanted)
                torch.sub(self._error[start + k], before, out=moved[k])

    def _refit_scales(self) -> None:
        """Give every group in turn the scale that suits its codes best, given the errors of all other inputs."""
        size, hessian = self._grid.format.group_size, self._factor.hessian
        places = torch.empty_like(self._factor.order)
        places[self._factor.order] = torch.arange(len(places))
        groups = list(dict.fromkeys(self._groups))
        together = max(1, BLOCK // size)
        for start in range(0, len(groups), together):
            block = groups[start : start + together]
            members = [places[group * size : (group + 1) * size].sort().values for group in block]
            gradients = torch.split(hessian[torch.cat(members)] @ self._error, size)
            moved: list[Tensor] = []  # changes of the errors of this block so far
            for group, rows, gradient in zip(block, members, gradients, strict=True):
                for other, change in zip(members, moved, strict=False):
                    gradient = gradient.addmm(hessian[rows][:, other], change)
                moved.append(self._refit_scale(group, rows, gradient))

    def _refit_scale(self, group: int, rows: Tensor, gradient: Tensor) -> Tensor:
        """Change one group's scale, given H E of its inputs [size, out]; the change of their errors."""
        scale, codes = self._scales[group], self._codes[rows]
        slope = (codes * gradient).sum(dim=0)
        curvature = (codes * (self._factor.hessian[rows][:, rows] @ codes)).sum(dim=0)
        best = torch.where(curvature > 0, scale + slope / curvature, scale)
        stored = torch.from_numpy(best.numpy().astype(np.float16).astype(np.float32))
        step = stored - scale
        is_better = (step * (step * curvature - 2 * slope) < 0) & torch.isfinite(stored)
        step = torch.where(is_better, step, 0.0)
        scale.copy_(torch.where(is_better, stored, scale))
        self._inverses[group] = torch.from_numpy(inverse(scale.numpy()))
        change = -codes * step
        self._error[rows] += change
        return change

    def _round(self, index: int, wanted: Tensor) -> None:
        """Give input `index` the codes of the values nearest to `wanted` [out]."""
        group, codes = self._groups[index], self._codes[index]
        self._targets[index] = wanted
        if self._offsets is None:
            torch.mul(wanted, self._inverses[group], out=codes)
            codes.round_().clamp_(self._low, self._high)
            value = codes * self._scales[group]
        else:
            torch.sub(wanted, self._offsets[group], out=codes)
            codes.mul_(self._inverses[group]).round_().clamp_(self._low, self._high)
            value = torch.addcmul(self._offsets[group], codes, self._scales[group])
        torch.sub(self._weight[index], value, out=self._error[index])
