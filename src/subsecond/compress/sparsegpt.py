"""SparseGPT: chooses weights to remove column by column and moves what they did onto the later columns."""

from __future__ import annotations

import torch
from torch import Tensor

from subsecond.compress.gram_matrix import DAMPING, checked_gram, checked_weight, inverse_factor
from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError

BLOCK = 128


def sparsegpt(
    weight: Floats,
    gram: Floats | None,
    density: float,
    *,
    pattern: tuple[int, int] | None = None,
    block: int = BLOCK,
    damping: float = DAMPING,
) -> Floats:
    """The weight [out, in] with about a part `density` of it left, the others zero and the remaining ones updated.

    Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1, with U^T U = (G + lambda I)^-1: in every block of columns
    those of least w^2 / U_jj^2 go, over all rows together; with `pattern` (kept, group) the least of each group of a
    row. Removing w_j adds -w_j / U_jj * U[j, j:] to the row. Inputs that were always zero lose all their weights.

    Raises:
        InputError: density, pattern or block is not allowed, shapes do not fit, or numbers are not finite.
    """
    if not 0 < density <= 1 or block < 1:
        raise InputError(f"density {density} and blocks of {block} were asked for; allowed are 0 to 1, and at least 1")
    W = checked_weight(weight)
    num_inputs = W.shape[1]
    if pattern is not None:
        block = _check_pattern(pattern, num_inputs, block)
    G = checked_gram(gram, num_inputs)
    U = inverse_factor(G, damping).to(torch.float32)
    is_dead = G.diagonal() == 0
    W[:, is_dead] = 0
    W = W.to(torch.float32)
    for start in range(0, num_inputs, block):
        end = min(start + block, num_inputs)
        U_block = U[start:end, start:end]
        errors = _prune_block(W[:, start:end], U_block, density, pattern)
        W[:, end:] -= errors @ U[start:end, end:]
    found: Floats = W.numpy()
    return found


def _prune_block(W: Tensor, U: Tensor, density: float, pattern: tuple[int, int] | None) -> Tensor:
    """Prune W [out, block] in place; returns (w_j - its new value) / U_jj [out, block] for the columns after it."""
    diagonal = U.diagonal()
    errors = torch.zeros_like(W)
    mask = _keep_of_all(W / diagonal, density) if pattern is None else torch.ones_like(W, dtype=torch.bool)
    for j in range(W.shape[1]):
        if pattern is not None and j % pattern[1] == 0:
            group = slice(j, j + pattern[1])
            order = (W[:, group] / diagonal[group]).square().argsort(dim=1, descending=True, stable=True)
            mask[:, group] = torch.zeros_like(mask[:, group]).scatter(1, order[:, : pattern[0]], value=True)
        w = W[:, j]
        error = torch.where(mask[:, j], 0.0, w / diagonal[j])
        errors[:, j] = error
        W[:, j + 1 :] -= torch.outer(error, U[j, j + 1 :])
        W[:, j] = torch.where(mask[:, j], w, 0.0)
    return errors


def _keep_of_all(scaled: Tensor, density: float) -> Tensor:
    """True for the largest part `density` of all entries by their square; of equal ones the first."""
    num_kept = round(density * scaled.numel())
    order = scaled.square().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scaled.numel(), dtype=torch.bool)
    mask[order[:num_kept]] = True
    return mask.reshape(scaled.shape)


def _check_pattern(pattern: tuple[int, int], num_inputs: int, block: int) -> int:
    kept, group = pattern
    if not 1 <= kept < group or num_inputs % group:
        raise InputError(
            f"{kept} of {group} neighbours were to stay in rows of {num_inputs}; needed are fewer than the group has, "
            "and rows that groups divide"
        )
    return max(group, block // group * group)
