"""Closed-form least squares: the remaining weights of a linear after some of its inputs are gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from subsecond.compress.gram_matrix import DAMPING, checked_gram, checked_weight, factor
from subsecond.compress.importance import Indices
from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Refit:
    """`weight` float32 [out, kept], `bias` float32 [out] or None as the linear had one.

    `error_cut` and `error` are E||y - y'||^2 / E||y||^2 with the columns just cut out, and after the refit.
    """

    weight: Floats
    bias: Floats | None
    error_cut: float
    error: float


def refit_columns(
    weight: Floats,
    gram: Floats | None,
    kept: Indices,
    *,
    bias: Floats | None = None,
    mean: Floats | None = None,
    damping: float = DAMPING,
) -> Refit:
    """The W' [out, kept] with the least E||W x - W' x_K||^2 + damping * mean(diag) * ||W' - W_K||^2.

    W' = W_K + W_P G_PK (G_KK + lambda I)^-1 for the kept inputs K and the pruned P. For lambda -> 0 it is W G[:, K]
    (G_KK)^-1 (ridge regression; Hoerl and Kennard 1970); the ridge pulls towards the old weights instead of zero, so
    nothing changes where nothing was pruned. With a bias, and `mean` E[x], the covariance takes the place of G, and the
    bias absorbs the mean of what is gone: b' = b + W E[x] - W' E[x_K] (An et al. 2023, arXiv 2312.11983, equation 4).

    Raises:
        InputError: shapes do not fit, or numbers are not finite.
    """
    W = checked_weight(weight)
    num_inputs = W.shape[1]
    G = checked_gram(gram, num_inputs)
    K, P = _split(kept, num_inputs)
    m = torch.zeros(num_inputs, dtype=torch.float64)
    if bias is not None and mean is not None:
        m = torch.from_numpy(mean.astype(np.float64))
    C = G - torch.outer(m, m)
    C.diagonal().clamp_(min=0)  # rounding may leave a constant input slightly below zero
    W_new = W[:, K]
    if len(P):
        lower = factor(C[K][:, K], damping)
        W_new = W_new + torch.cholesky_solve(C[K][:, P] @ W[:, P].T, lower).T
    total = _energy(W, G) or 1.0
    new_bias = None
    if bias is not None:
        new_bias = (bias + (W @ m - W_new @ m[K]).numpy()).astype(np.float32)
    errors = []
    for candidate in (W[:, K], W_new):
        difference = W.clone()
        difference[:, K] -= candidate
        errors.append(_energy(difference, G if candidate is not W_new else C) / total)
    return Refit(W_new.numpy().astype(np.float32), new_bias, errors[0], errors[1])


def output_error(weight: Floats, changed: Floats, gram: Floats | None) -> float:
    """E||W x - W' x||^2 / E||W x||^2 of two weights [out, in] with the Gram matrix of x; 0 where W x is always 0."""
    W, W_new = checked_weight(weight), checked_weight(changed, "the changed weight")
    if W.shape != W_new.shape:
        raise InputError(f"weights {tuple(W.shape)} and {tuple(W_new.shape)} cannot be compared")
    G = checked_gram(gram, W.shape[1])
    total = _energy(W, G)
    return _energy(W - W_new, G) / total if total else 0.0


def _energy(W: torch.Tensor, G: torch.Tensor) -> float:
    """E||W x||^2 = trace(W G W^T)."""
    return max(0.0, float(((W @ G) * W).sum()))


def _split(kept: Indices, num_inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    is_in_order = len(kept) > 0 and bool((np.diff(kept) > 0).all())
    if not is_in_order or kept[0] < 0 or kept[-1] >= num_inputs:
        raise InputError(f"the kept inputs must be different, in ascending order and below {num_inputs}")
    is_pruned = np.ones(num_inputs, np.bool_)
    is_pruned[kept] = False
    return torch.from_numpy(kept.astype(np.int64)), torch.from_numpy(np.flatnonzero(is_pruned))
