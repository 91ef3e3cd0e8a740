"""AWQ: scales the inputs that matter up before rounding, and what produces them down; searches exponents and clips.

Lin et al. 2023, arXiv 2306.00978. The scales of an input fold into the norm before it, or into the rows of the linear
that writes it, so that the unquantized model stays the same function. What is minimised is the error of the outputs of
the linears that share the input, not that of a whole block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from subsecond.compress.output_error import QuantizationReport, output_power, report
from subsecond.compress.rounding import (
    GRID_FORMATS,
    Floats,
    Grid,
    check_weight,
    inverse,
    nearest_grid,
    plain_grid,
    round_to_nearest,
)
from subsecond.compress.statistics import InputStatistics
from subsecond.core.errors import InputError
from subsecond.formats.gguf_types import TensorType
from subsecond.models.weights import StoredTensor

LEAST_INPUT = 1e-4  # of the mean |x|: inputs that were hardly seen
WEIGHT_FLOOR = 1e-4  # added to the mean size of weights, as in the published method


@dataclass(frozen=True, slots=True)
class AwqOptions:
    """What is searched.

    num_exponents  r = 0, 1/n, ..., of s = mean|x|^r / mean|w|^(1-r)
    num_clips      shares of the unclipped scale that each group tries, from 1 down to `least_clip`; 1 tries no other
    """

    num_exponents: int = 20
    num_clips: int = 20
    least_clip: float = 0.5

    def __post_init__(self) -> None:
        if not (1 <= self.num_exponents <= 1000 and 1 <= self.num_clips <= 1000 and 0 < self.least_clip <= 1):
            raise InputError(
                f"{self} is not allowed: num_exponents and num_clips from 1 to 1000, least_clip above 0 and up to 1"
            )


@dataclass(frozen=True, slots=True, eq=False)
class AwqResult:
    """Linears of one input whose weights were multiplied by `scales` [in]; the input has to be divided by them."""

    scales: Floats
    stored: tuple[StoredTensor, ...]
    reports: tuple[QuantizationReport, ...]


Rounder = Callable[[Floats, InputStatistics], StoredTensor]


def awq(
    weights: Sequence[Floats],
    statistics: InputStatistics,
    tensor_type: TensorType = TensorType.Q4_0,
    options: AwqOptions | None = None,
    rounder: Rounder | None = None,
) -> AwqResult:
    """Scale and round all `weights` float32 [out, in] that read one input.

    rounder  of the scaled weights and the statistics of the scaled input; None for a search of clips per group, which
             is for types without offsets

    The reported errors are those of the weights as the model then uses them, with the scales divided out.
    """
    options = options or AwqOptions()
    scales = awq_scales(weights, statistics, tensor_type, options)
    scaled_inputs = scaled_statistics(statistics, scales)
    stored, reports = [], []
    for weight in weights:
        scaled = weight * scales
        made = (
            rounder(scaled, scaled_inputs)
            if rounder
            else round_to_nearest(scaled, clip_grid(scaled, scaled_inputs, tensor_type, options))
        )
        stored.append(made)
        reports.append(report("awq", scaled, made, scaled_inputs))
    return AwqResult(scales, tuple(stored), tuple(reports))


def awq_scales(
    weights: Sequence[Floats],
    statistics: InputStatistics,
    tensor_type: TensorType = TensorType.Q4_0,
    options: AwqOptions | None = None,
) -> Floats:
    """The scales float32 [in] that lose least when all `weights` that read the input are rounded; r = 0 is among them.

    Scales are divided by sqrt(largest * smallest), so that they stay around 1.
    """
    options = options or AwqOptions()
    for weight in weights:
        check_weight(weight, tensor_type)
        if weight.shape[1] != len(statistics.mean_abs):
            raise InputError(
                f"statistics of {len(statistics.mean_abs)} inputs do not belong to a weight of {weight.shape[1]}"
            )
    width = weights[0].shape[1]
    size = GRID_FORMATS[tensor_type].group_size
    inputs = statistics.mean_abs.astype(np.float64)
    if not np.isfinite(inputs).all():
        raise InputError("the statistics of an input hold inf or nan; collect them again")
    if not inputs.any():
        return np.ones(width, np.float32)
    inputs = np.maximum(inputs, LEAST_INPUT * inputs.mean())
    relative = np.concatenate([_relative_sizes(weight, size) for weight in weights]).mean(axis=0)
    best, least_loss = np.ones(width, np.float32), _loss(weights, np.ones(width, np.float32), statistics, tensor_type)
    for step in range(options.num_exponents):
        exponent = step / options.num_exponents
        scales = inputs**exponent / (relative ** (1 - exponent) + WEIGHT_FLOOR)
        scales = (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)
        loss = _loss(weights, scales, statistics, tensor_type)
        if loss < least_loss:
            best, least_loss = scales, loss
    return best


def clip_grid(
    weight: Floats, statistics: InputStatistics, tensor_type: TensorType, options: AwqOptions | None = None
) -> Grid:
    """A grid without offsets whose groups are clipped where that lowers the error of their part of the outputs.

    That error is e^T G e with the group's own block of the Gram matrix, its diagonal where only that is known.
    """
    options = options or AwqOptions()
    form, grid = GRID_FORMATS[tensor_type], nearest_grid(weight, tensor_type)
    size = form.group_size
    groups = torch.from_numpy(np.ascontiguousarray(weight.reshape(len(weight), -1, size).swapaxes(0, 1)))
    blocks = torch.from_numpy(_gram_blocks(statistics, size))
    full = torch.from_numpy(np.ascontiguousarray(grid.scales.T))
    best, least = full.clone(), torch.full_like(full, torch.inf)
    for share in np.linspace(1.0, options.least_clip, options.num_clips):
        scales = torch.from_numpy((full * float(share)).numpy().astype(np.float16).astype(np.float32))
        codes = (groups * torch.from_numpy(inverse(scales.numpy()))[..., None]).round_().clamp_(form.low, form.high)
        errors = codes.mul_(scales[..., None]).sub_(groups)
        loss = (torch.bmm(errors, blocks) * errors).sum(dim=-1)
        is_better = loss < least
        best, least = torch.where(is_better, scales, best), torch.where(is_better, loss, least)
    return plain_grid(tensor_type, np.ascontiguousarray(best.numpy().T))


def scaled_statistics(statistics: InputStatistics, scales: Floats) -> InputStatistics:
    """Statistics of the input divided by `scales` [in]."""
    shares = (np.float32(1) / scales).astype(np.float32)
    gram = None if statistics.gram is None else statistics.gram * shares[:, None] * shares
    return replace(
        statistics,
        mean=statistics.mean * shares,
        mean_square=statistics.mean_square * shares * shares,
        mean_abs=statistics.mean_abs * shares,
        max_abs=statistics.max_abs * shares,
        gram=gram,
    )


def _relative_sizes(weight: Floats, size: int) -> Floats:
    """|w| over the largest of its group, [out, in]."""
    groups = np.abs(weight).reshape(len(weight), -1, size)
    largest = groups.max(axis=-1, keepdims=True)
    relative: Floats = np.divide(groups, largest, out=np.zeros_like(groups), where=largest > 0)
    return relative.reshape(weight.shape)


def _loss(weights: Sequence[Floats], scales: Floats, statistics: InputStatistics, tensor_type: TensorType) -> float:
    total = 0.0
    for weight in weights:
        scaled = weight * scales
        grid = nearest_grid(scaled, tensor_type)
        total += output_power(grid.values(grid.round(scaled)) / scales - weight, statistics)
    return total


def _gram_blocks(statistics: InputStatistics, size: int) -> Floats:
    """The blocks of the Gram matrix on its diagonal, float32 [groups, size, size]."""
    num_groups = len(statistics.mean_square) // size
    if statistics.gram is None:
        blocks = np.zeros((num_groups, size, size), np.float32)
        blocks[:, np.arange(size), np.arange(size)] = statistics.mean_square.reshape(num_groups, size)
        return blocks
    four = statistics.gram.reshape(num_groups, size, num_groups, size)
    index = np.arange(num_groups)
    return np.ascontiguousarray(four[index, :, index, :])
