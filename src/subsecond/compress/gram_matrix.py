"""Gram matrices of inputs: checked, damped, factored and inverted in float64; knows no method that uses them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError

DAMPING = 0.01
"""Part of the mean of the diagonal that is added to it (Frantar et al. 2022, arXiv 2210.17323, section 3.3)."""
_MAX_RAISES = 5


def checked_gram(gram: Floats | None, num_inputs: int) -> Tensor:
    """The Gram matrix as float64 [num_inputs, num_inputs], made symmetric.

    InputError where there is none, or it has another shape, or holds numbers that no sum of x x^T can give.
    """
    if gram is None:
        raise InputError("this method needs the Gram matrix of the inputs; collect statistics with it")
    if gram.shape != (num_inputs, num_inputs):
        raise InputError(f"the Gram matrix has shape {gram.shape}; the weight has {num_inputs} inputs")
    if not np.isfinite(gram).all():
        raise InputError("the Gram matrix holds NaN or infinity; the model overflows on the calibration text")
    G = torch.from_numpy(gram.astype(np.float64))
    if bool((G.diagonal() < 0).any()):
        raise InputError("the Gram matrix has negative numbers on its diagonal, which squares never are")
    return (G + G.T) / 2


def checked_weight(weight: NDArray[np.floating], name: str = "the weight") -> Tensor:
    """A weight [out, in] as a float64 tensor of its own; InputError for another number of axes, NaN or infinity."""
    if weight.ndim != 2 or not weight.size:
        raise InputError(f"{name} has shape {weight.shape}; it must be a matrix [out, in]")
    if not np.isfinite(weight).all():
        raise InputError(f"{name} holds NaN or infinity; the file that it comes from is damaged")
    return torch.from_numpy(weight.astype(np.float64))


def factor(G: Tensor, damping: float = DAMPING) -> Tensor:
    """Lower Cholesky factor of G + damping * mean(diagonal of G) * I, float64.

    Inputs that were always zero get a diagonal of the mean, so that they stay apart from the others. Damping is raised
    tenfold, up to five times, while the matrix is not positive definite in float64.

    Raises:
        InputError: damping is not positive, or the matrix is not positive definite even with the most damping.
    """
    if not damping > 0:
        raise InputError(f"damping is {damping}; it must be positive")
    diagonal = G.diagonal()
    scale = float(diagonal.mean()) or 1.0
    is_dead = diagonal == 0
    for _ in range(_MAX_RAISES + 1):
        damped = G.clone()
        damped.diagonal().add_(torch.full_like(diagonal, damping * scale).masked_fill(is_dead, scale))
        lower: Tensor
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            return lower
        damping *= 10
    raise InputError(
        "the Gram matrix is not positive definite, even with much damping; it is no sum of x x^T. "
        "Collect the statistics again"
    )


def inverse(G: Tensor, damping: float = DAMPING) -> Tensor:
    """Inverse of the damped matrix, as `factor` damps it; float64."""
    return torch.cholesky_inverse(factor(G, damping))


def inverse_factor(G: Tensor, damping: float = DAMPING) -> Tensor:
    """Upper Cholesky factor U of the inverse of the damped matrix, (G + ...)^-1 = U^T U; float64.

    U[j, j]^2 is entry j, j of the inverse of the damped matrix without the inputs before j, and U[j, j:] / U[j, j] the
    update of the inputs after j for an error at j (Frantar et al. 2022, arXiv 2210.17323, step 3).
    """
    upper: Tensor = torch.linalg.cholesky(inverse(G, damping), upper=True)
    return upper
