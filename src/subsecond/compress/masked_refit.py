"""Least squares within a mask: the best values for the weights that stay; does not choose which ones do."""

from __future__ import annotations

import numpy as np
import torch

from subsecond.compress.gram_matrix import DAMPING, checked_gram, checked_weight
from subsecond.compress.masks import Mask
from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError

NUM_STEPS = 20


def masked_refit(
    weight: Floats, mask: Mask, gram: Floats | None, *, damping: float = DAMPING, num_steps: int = NUM_STEPS
) -> Floats:
    """The weights of least E||W x - W' x||^2 + lambda ||W' - W||^2 among those that are zero outside `mask` [out, in].

    Conjugate gradients (Hestenes and Stiefel 1952) with the diagonal as preconditioner, all rows at once; after
    `num_steps` steps it stops wherever it is. The error never grows from step to step.

    Raises:
        InputError: shapes do not fit, or numbers are not finite.
    """
    W = checked_weight(weight).to(torch.float32)
    if mask.shape != weight.shape or mask.dtype != np.bool_:
        raise InputError(f"the mask is {mask.dtype} {mask.shape}; the weight needs bool {weight.shape}")
    G = checked_gram(gram, W.shape[1])
    M = torch.from_numpy(mask)
    G.diagonal().add_(damping * (float(G.diagonal().mean()) or 1.0))
    G = G.to(torch.float32)
    scale = G.diagonal()
    X = W * M
    R = ((W - X) @ G) * M
    Z = R / scale
    D = Z.clone()
    rho = (R * Z).sum(dim=1, keepdim=True)
    for _ in range(num_steps):
        D_G = (D @ G) * M
        curvature = (D * D_G).sum(dim=1, keepdim=True)
        step = torch.where(curvature > 0, rho / curvature.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
        X += step * D
        R -= step * D_G
        Z = R / scale
        rho_new = (R * Z).sum(dim=1, keepdim=True)
        D = Z + torch.where(rho > 0, rho_new / rho.clamp_min(torch.finfo(torch.float32).tiny), 0.0) * D
        rho = rho_new
    found: Floats = X.numpy()
    return found
