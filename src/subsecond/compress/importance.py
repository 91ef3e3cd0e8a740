"""How much each neuron of a feed-forward part contributes, by several measures, and which of them stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from subsecond.compress.gram_matrix import DAMPING, checked_gram, checked_weight, inverse
from subsecond.compress.statistics import Floats, InputStatistics
from subsecond.core.errors import InputError

Scores = NDArray[np.float64]
Indices = NDArray[np.int64]

WIDTH_MULTIPLE = 64
"""Widths that the kernels like: whole tiles, whole groups of 32 weights, and two threads that share them evenly."""
MIN_MULTIPLE = 32


def activation_importance(batches: Sequence[InputStatistics]) -> Scores:
    """sqrt(sum over batches of (mean |x_n|)^2) of the down projection's input, float64 [inputs].

    Muralidharan et al. 2024 (Minitron), arXiv 2407.14679, section 2.2: mean over a sequence, L2 over the batch. With
    one batch it orders neurons by mean |x_n|.
    """
    if not batches:
        raise InputError("no statistics were given; importance by activation needs at least one batch")
    means = np.stack([batch.mean_abs.astype(np.float64) for batch in batches])
    return _checked(np.sqrt(np.square(means).sum(axis=0)), "activation")


def fluctuation_importance(weight: Floats, statistics: InputStatistics) -> Scores:
    """Var(x_n) * ||W[:, n]||^2 of a down projection [out, in]: An et al. 2023 (FLAP), arXiv 2312.11983, equation 5."""
    mean = statistics.mean.astype(np.float64)
    variance = np.maximum(statistics.mean_square.astype(np.float64) - np.square(mean), 0.0)
    return _checked(variance * np.square(weight.astype(np.float64)).sum(axis=0), "fluctuation")


def taylor_importance(weights: Sequence[Floats], gradients: Sequence[Floats]) -> Scores:
    """|sum over a neuron's weights of w * dLoss/dw|, float64 [neurons].

    `weights` and `gradients` are matrices [neurons, any]: rows of gate and up, columns of down as rows. Ma et al. 2023
    (LLM-Pruner), arXiv 2305.11627, equation 5, summed over the neuron's group.
    """
    if not weights or len(weights) != len(gradients):
        raise InputError(f"{len(weights)} weights and {len(gradients)} gradients were given; each needs the other")
    total = np.zeros(len(weights[0]), np.float64)
    for weight, gradient in zip(weights, gradients, strict=True):
        if weight.shape != gradient.shape or len(weight) != len(total):
            raise InputError(
                f"weights {weight.shape} and gradients {gradient.shape} do not fit; both have a row for each of the "
                f"{len(total)} neurons"
            )
        total += (weight.astype(np.float64) * gradient.astype(np.float64)).sum(axis=1)
    return _checked(np.abs(total), "Taylor")


def sensitivity_importance(weight: Floats, gram: Floats | None, damping: float = DAMPING) -> Scores:
    """||W[:, n]||^2 / [G^-1]_nn: what E||W x - W' x||^2 grows by without input n, with the best W' of the others.

    The saliency of optimal brain surgery for a whole column (Hassibi and Stork 1993; Kurtic et al. 2023, ZipLM,
    arXiv 2302.04089, equation 3), 0 for inputs that were always zero. It accounts for the refit that follows, which the
    other measures do not.
    """
    W = checked_weight(weight)
    G = checked_gram(gram, W.shape[1])
    W[:, G.diagonal() == 0] = 0
    found: Scores = (W.square().sum(dim=0) / inverse(G, damping).diagonal()).numpy()
    return _checked(found, "sensitivity")


def select_greedily(
    weight: Floats, gram: Floats | None, num_kept: int, *, num_at_once: int = 16, damping: float = DAMPING
) -> Indices:
    """The inputs to keep, ascending: those of least `sensitivity_importance` leave, `num_at_once` together.

    After each step W and G^-1 become those of the remaining inputs, so of two inputs that say the same only one goes
    (Kurtic et al. 2023, arXiv 2302.04089, algorithm 1). Costs num_removed / num_at_once updates of [in, in].
    """
    W = checked_weight(weight)
    num_inputs = W.shape[1]
    _check_count(num_kept, num_inputs)
    if num_at_once < 1:
        raise InputError(f"{num_at_once} inputs at once were asked for; it must be at least 1")
    G = checked_gram(gram, num_inputs)
    W[:, G.diagonal() == 0] = 0
    H_inverse = inverse(G, damping)
    is_kept = torch.ones(num_inputs, dtype=torch.bool)
    while (num_left := int(is_kept.sum()) - num_kept) > 0:
        scores = W.square().sum(dim=0) / H_inverse.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
        scores[~is_kept] = torch.inf
        gone = scores.argsort(stable=True)[: min(num_at_once, num_left)]
        block = torch.linalg.solve(H_inverse[gone][:, gone], H_inverse[gone])  # [gone, in]
        W -= W[:, gone] @ block
        H_inverse -= H_inverse[:, gone] @ block
        is_kept[gone] = False
    return np.flatnonzero(is_kept.numpy()).astype(np.int64)


def select_best(scores: Scores, num_kept: int) -> Indices:
    """The `num_kept` inputs with the highest scores, ascending; of equal scores the first."""
    _check_count(num_kept, len(scores))
    found: Indices = np.sort(np.argsort(-_checked(scores, "given"), kind="stable")[:num_kept]).astype(np.int64)
    return found


def rounded_width(width: int, kept_part: float, multiple: int = WIDTH_MULTIPLE) -> int:
    """The multiple of `multiple` nearest to kept_part * width, at least one; where `width` is below 4 of them, of 32.

    InputError where that leaves the width as it is, or a number is not allowed.
    """
    if not 0 < kept_part < 1:
        raise InputError(f"a part of {kept_part} of the width was to be kept; allowed is more than 0 and less than 1")
    if multiple < MIN_MULTIPLE or multiple % MIN_MULTIPLE:
        raise InputError(f"the width was to be a multiple of {multiple}; allowed are multiples of {MIN_MULTIPLE}")
    step = multiple if width >= 4 * multiple else MIN_MULTIPLE
    found = max(1, int(kept_part * width / step + 0.5)) * step
    if found >= width:
        raise InputError(
            f"{kept_part:.0%} of {width} neurons, rounded to a multiple of {step}, is {found}: nothing would be "
            f"removed. Keep less, or leave this out"
        )
    return found


def _check_count(num_kept: int, num_inputs: int) -> None:
    if not 1 <= num_kept <= num_inputs:
        raise InputError(f"{num_kept} of {num_inputs} inputs were to be kept; allowed are 1 to {num_inputs}")


def _checked(scores: Scores, name: str) -> Scores:
    if not np.isfinite(scores).all():
        raise InputError(f"importance by {name} is NaN or infinite; the statistics or the weights are damaged")
    return scores
