"""Chooses whole layers to remove, by cosine as a first guess and by measured divergence, and renumbers the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from subsecond.compress.importance import Scores
from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError
from subsecond.models.config import ModelConfig

NUM_PROTECTED_FIRST, NUM_PROTECTED_LAST = 2, 1
_LAYER = re.compile(r"blk\.(\d+)\.(.*)", re.DOTALL)


class BlockInfluence:
    """1 - E[cos(h_in, h_out)] of each layer over all rows: Men et al. 2024 (ShortGPT), arXiv 2403.03853, equation 1.

    A row that is zero on either side counts as cosine 0.
    """

    def __init__(self, num_layers: int) -> None:
        self._sums, self._counts = np.zeros(num_layers), np.zeros(num_layers, np.int64)

    def add(self, layer: int, h_in: Floats, h_out: Floats) -> None:
        """Count rows [rows, width] before and after a layer; InputError for other shapes, NaN or infinity."""
        before, after = h_in.astype(np.float64), h_out.astype(np.float64)
        if before.shape != after.shape or before.ndim != 2:
            raise InputError(f"rows {h_in.shape} before and {h_out.shape} after a layer cannot be compared")
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        if not np.isfinite(norms).all():
            raise InputError(f"layer {layer} reads or writes NaN or infinity on the calibration text")
        self._sums[layer] += ((before * after).sum(axis=1) / np.where(norms > 0, norms, 1.0)).sum()
        self._counts[layer] += len(before)

    @property
    def scores(self) -> Scores:
        """Influence of each layer, 0 for one that turns nothing; InputError while a layer has no rows."""
        if not self._counts.all():
            raise InputError(f"no rows were counted for layers {np.flatnonzero(self._counts == 0).tolist()}")
        return 1.0 - self._sums / self._counts


@dataclass(frozen=True, slots=True)
class Removal:
    """One step of the choice: `layer` went, which left divergence `kl` (nats a token); `tried` are all by layer."""

    layer: int
    kl: float
    tried: tuple[tuple[int, float], ...]


def choose_layers(
    num_layers: int,
    num_removed: int,
    measure_kl: Callable[[tuple[int, ...], tuple[int, ...]], Sequence[float]],
    *,
    prior: Sequence[float] | None = None,
    num_candidates: int | None = None,
    protected_first: int = NUM_PROTECTED_FIRST,
    protected_last: int = NUM_PROTECTED_LAST,
) -> list[Removal]:
    """Removes one layer after the other, each time the one with which the least divergence is left.

    `measure_kl` gets the layers removed before and candidates, both ascending, and returns the mean KL to the original
    model without each candidate as well. With `num_candidates` it is asked only about so many candidates a step, those
    of least `prior` (`BlockInfluence.scores`).
    On a tie the later layer goes. The first and last layers stay: without them models fall apart (ShortGPT, section 4).

    Raises:
        InputError: a number is not allowed, or a divergence is NaN.
    """
    free = [*range(protected_first, num_layers - protected_last)]
    if not 1 <= num_removed < max(len(free), 1) or (num_candidates is not None and num_candidates < 1):
        raise InputError(
            f"{num_removed} of {num_layers} layers were to go; {protected_first} at the begin and {protected_last} at "
            f"the end are protected, so allowed are 1 to {max(len(free) - 1, 0)}"
        )
    if prior is not None and len(prior) != num_layers:
        raise InputError(f"{len(prior)} influences were given for {num_layers} layers")
    removals: list[Removal] = []
    while len(removals) < num_removed:
        gone = [each.layer for each in removals]
        left = [layer for layer in free if layer not in gone]
        if prior is not None and num_candidates is not None:
            influence = prior
            left = sorted(sorted(left, key=lambda layer: influence[layer])[:num_candidates])
        found = measure_kl(tuple(sorted(gone)), tuple(left))
        tried = [(layer, float(kl)) for layer, kl in zip(left, found, strict=True)]
        if any(np.isnan(kl) for _, kl in tried):
            raise InputError("a divergence is NaN; the model without some layer overflows on the calibration text")
        layer, kl = min(tried, key=lambda each: (each[1], -each[0]))
        removals.append(Removal(layer, kl, tuple(tried)))
    return removals


def layer_of(name: str) -> int | None:
    """The layer that a weight belongs to, None for those of no layer."""
    found = _LAYER.fullmatch(name)
    return int(found[1]) if found else None


def renumbered(name: str, removed: Sequence[int]) -> str | None:
    """The name of a weight without the layers `removed`: None for a weight of one of them."""
    found = _LAYER.fullmatch(name)
    if found is None:
        return name
    layer = _new_place(int(found[1]), removed)
    return None if layer is None else f"blk.{layer}.{found[2]}"


def without_layers(config: ModelConfig, removed: Sequence[int]) -> ModelConfig:
    """The configuration with fewer layers; lists of layers with a window or without positions keep their meaning."""
    if len(set(removed)) != len(removed) or not all(0 <= layer < config.num_layers for layer in removed):
        raise InputError(f"layers {sorted(removed)} cannot be removed from a model with {config.num_layers}")

    def moved(layers: Sequence[int]) -> tuple[int, ...]:
        return tuple(place for layer in layers if (place := _new_place(layer, removed)) is not None)

    return replace(
        config,
        num_layers=config.num_layers - len(removed),
        window_layers=moved(config.window_layers),
        rope_free_layers=moved(config.rope_free_layers),
    )


def _new_place(layer: int, removed: Sequence[int]) -> int | None:
    return None if layer in removed else layer - sum(each < layer for each in removed)
