"""AutoRound: learns which way to round, and scales where they are free, by signed gradient steps; knows no model.

Cheng et al. 2023, arXiv 2309.05516: W = s * clip(round(W / s + V)) with V in [-0.5, 0.5], rounding passed by the
gradient as if it were not there, steps of the gradient's sign with a rate that falls linearly to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from subsecond.compress.output_error import QuantizationReport, report
from subsecond.compress.rounding import PLAIN_TYPES, Codes, Floats, Grid, check_weight, inverse, plain_grid
from subsecond.compress.statistics import InputStatistics
from subsecond.core.errors import InputError
from subsecond.models.weights import StoredTensor

# Mean squared error of what the weights, float32 by name, give for batch number i, against what it should be.
Loss = Callable[[Mapping[str, Tensor], int], Tensor]


@dataclass(frozen=True, slots=True)
class AutoRoundOptions:
    """How long and how far.

    num_steps    of one batch each
    rate         of the first step; None for 1 / num_steps
    scale_range  how far a scale may move, as a share of it; 0 keeps all
    num_checks   how often all batches are tried on the way; what did best is kept, plain rounding included
    seed         of the order of batches
    """

    num_steps: int = 200
    rate: float | None = None
    scale_range: float = 0.1
    num_checks: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not (
            1 <= self.num_steps <= 100_000
            and (self.rate is None or 0 < self.rate <= 1)
            and 0 <= self.scale_range <= 0.5
            and 1 <= self.num_checks <= self.num_steps
        ):
            raise InputError(
                f"{self} is not allowed: num_steps from 1 to 100000, rate above 0 and up to 1, scale_range from 0 to "
                "0.5, num_checks from 1 to num_steps"
            )


def learn_rounding(
    weights: Mapping[str, Floats],
    grids: Mapping[str, Grid],
    loss: Loss,
    num_batches: int,
    options: AutoRoundOptions | None = None,
    statistics: Mapping[str, InputStatistics] | None = None,
    starts: Mapping[str, Floats] | None = None,
) -> dict[str, tuple[StoredTensor, QuantizationReport]]:
    """Round `weights` float32 [out, in], all together, so that `loss` is small over the batches 0 to num_batches - 1.

    grids       where to start; scales of super-blocks stay, since they are integers
    statistics  by name of the weight, for the reports
    starts      what to round first in place of the weights, such as the targets of GPTQ
    """
    options = options or AutoRoundOptions()
    if num_batches < 1:
        raise InputError("learned rounding needs at least one batch of calibration windows")
    learners = {}
    for name, weight in weights.items():
        check_weight(weight, grids[name].type)
        learners[name] = _Learner((starts or weights)[name], grids[name], options.scale_range)
    rate = options.rate or 1.0 / options.num_steps
    generator = np.random.default_rng(options.seed)
    parameters = [value for learner in learners.values() for value in learner.parameters]
    checks = set(np.linspace(0, options.num_steps, options.num_checks + 1).round().astype(int).tolist())
    first = least = _mean_loss(learners, loss, num_batches)
    best = {name: learner.state() for name, learner in learners.items()}
    for step in range(1, options.num_steps + 1):
        batch = int(generator.integers(num_batches))
        value = loss({name: learner.weight() for name, learner in learners.items()}, batch)
        gradients = torch.autograd.grad(value, parameters)
        current = rate * (1 - (step - 1) / options.num_steps)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient.sign(), alpha=current)
        for learner in learners.values():
            learner.clamp()
        if step in checks:
            mean = _mean_loss(learners, loss, num_batches)
            if mean < least:
                least, best = mean, {name: learner.state() for name, learner in learners.items()}
    notes = (f"learned rounding: loss {first:.4g} -> {least:.4g} in {options.num_steps} steps",)
    found = {}
    for name, (grid, codes) in best.items():
        stored = grid.store(codes)
        found[name] = stored, report("autoround", weights[name], stored, (statistics or {}).get(name), notes)
    return found


def _mean_loss(learners: Mapping[str, _Learner], loss: Loss, num_batches: int) -> float:
    with torch.no_grad():
        rounded = {name: learner.weight() for name, learner in learners.items()}
        return sum(float(loss(rounded, batch)) for batch in range(num_batches)) / num_batches


class _Learner:
    """One weight: the shift V of every weight, and the factor of every group's scale."""

    def __init__(self, weight: Floats, grid: Grid, scale_range: float) -> None:
        self._grid, self._range = grid, scale_range
        form = grid.format
        self._low, self._high = float(form.low), float(form.high)
        groups = weight.reshape(*grid.scales.shape, form.group_size)
        offsets = np.zeros_like(grid.scales) if grid.offsets is None else grid.offsets
        self._offsets = torch.from_numpy(np.array(offsets))[..., None]
        self._scales = torch.from_numpy(np.array(grid.scales))[..., None]
        self._position = torch.from_numpy((groups - offsets[..., None]) * inverse(grid.scales)[..., None])
        self._shift = torch.zeros_like(self._position, requires_grad=True)
        is_free = scale_range > 0 and grid.type in PLAIN_TYPES
        self._factor = torch.ones_like(self._scales, requires_grad=True) if is_free else None

    @property
    def parameters(self) -> list[Tensor]:
        return [self._shift] if self._factor is None else [self._shift, self._factor]

    def weight(self) -> Tensor:
        """The rounded weight float32 [out, in], through which gradients pass."""
        codes, scales = self._codes(), self._scales if self._factor is None else self._scales * self._factor
        return (codes * scales + self._offsets).reshape(self._grid.shape)

    def clamp(self) -> None:
        with torch.no_grad():
            self._shift.clamp_(-0.5, 0.5)
            if self._factor is not None:
                self._factor.clamp_(1 - self._range, 1 + self._range)

    def state(self) -> tuple[Grid, Codes]:
        """Grid and codes as they now are."""
        with torch.no_grad():
            codes = self._codes().reshape(self._grid.shape).numpy().astype(np.int8)
            if self._factor is None:
                return self._grid, codes
            return plain_grid(self._grid.type, (self._scales * self._factor)[..., 0].numpy()), codes

    def _codes(self) -> Tensor:
        position = self._position + self._shift if self._factor is None else self._position / self._factor + self._shift
        rounded = position + (position.round() - position).detach()
        return rounded.clamp(self._low, self._high)
