"""Refines a mask: exchanges one kept against one removed weight of a row as long as that lowers the row's error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from subsecond.compress.gram_matrix import checked_gram, checked_weight
from subsecond.compress.masks import Mask
from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError

NUM_CANDIDATES = 2
NUM_STEPS = 100
_MIN_GAIN = 1e-6  # of the row's error; below it float32 could go round in circles
_BLOCK_ELEMENTS = 1 << 22


def swap_masks(
    weight: Floats,
    mask: Mask,
    gram: Floats | None,
    *,
    num_steps: int = NUM_STEPS,
    num_candidates: int | None = NUM_CANDIDATES,
) -> Mask:
    """A mask [out, in] with as many kept weights in each row, whose error E||W x - (mask * W) x||^2 is lower.

    Removing the kept weight u and keeping the removed weight p changes the error of a row by
    2 w_u c_u + w_u^2 G_uu - 2 w_p c_p + w_p^2 G_pp - 2 w_u w_p G_up, c = G ((1 - mask) * w). Each step makes the best
    exchange of every row, with p among the `num_candidates` that gain most on their own (None: all), until no row gains
    or `num_steps` are done. Formula: SparseSwaps; it is exact for one exchange.

    Raises:
        InputError: shapes do not fit, a number is not allowed, or numbers are not finite.
    """
    W = checked_weight(weight).to(torch.float32)
    if mask.shape != weight.shape or mask.dtype != np.bool_:
        raise InputError(f"the mask is {mask.dtype} {mask.shape}; the weight needs bool {weight.shape}")
    if num_steps < 0 or (num_candidates is not None and num_candidates < 1):
        raise InputError(f"{num_steps} steps of {num_candidates} candidates were asked for; needed are 0 and 1 or more")
    num_inputs = W.shape[1]
    G = checked_gram(gram, num_inputs).to(torch.float32)
    M = torch.from_numpy(mask.copy())
    count = num_inputs if num_candidates is None else min(num_candidates, num_inputs)
    rows_at_once = max(1, _BLOCK_ELEMENTS // (num_inputs * count))
    for start in range(0, len(W), rows_at_once):
        rows = slice(start, start + rows_at_once)
        _swap_rows(W[rows], M[rows], G, num_steps, count)
    found: Mask = M.numpy()
    return found


def _swap_rows(W: Tensor, M: Tensor, G: Tensor, num_steps: int, count: int) -> None:
    """Change M [rows, in] in place. Rows that gain nothing more leave the work."""
    active = torch.arange(len(W))
    w, m = W, M.clone()
    c = (w * ~m) @ G
    for _ in range(num_steps):
        error = (c * w * ~m).sum(dim=1)
        gain, u, p = _best_swaps(w, m, c, G, count)
        has_gained = gain < -_MIN_GAIN * error
        if not bool(has_gained.any()):
            break
        if not bool(has_gained.all()):
            M[active[~has_gained]] = m[~has_gained]
            active, w, m, c, u, p = (each[has_gained] for each in (active, w, m, c, u, p))
        rows = torch.arange(len(w))
        m[rows, u], m[rows, p] = False, True
        c += w[rows, u, None] * G[u] - w[rows, p, None] * G[p]
    M[active] = m


def _best_swaps(w: Tensor, m: Tensor, c: Tensor, G: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(change of the error, u to remove, p to keep) of each row; +inf where a row is all kept or all removed."""
    rows = torch.arange(len(w))
    own = w.square() * G.diagonal()
    removal = (2 * w * c + own).masked_fill(~m, torch.inf)
    restoring = (own - 2 * w * c).masked_fill(m, torch.inf)
    order = restoring.argsort(dim=1, stable=True)[:, :count]  # [rows, count]
    pair = removal[:, None] - 2 * w[:, None] * w.gather(1, order)[..., None] * G[order]
    best = (pair + restoring.gather(1, order)[..., None]).flatten(1)
    best = best.nan_to_num(nan=torch.inf)
    gain, place = best.min(dim=1)
    return gain, place % w.shape[1], order[rows, place // w.shape[1]]
