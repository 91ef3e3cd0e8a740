"""Picks one option of every group so that the loss is least within a budget of cost; knows not what either is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import InputError

MAX_STATES = 50_000
"""Partial choices that are kept. With more the budget is cut into as many parts, and the best of each is kept."""


@dataclass(frozen=True, slots=True)
class Option:
    """What a group may be made of: its cost, such as seconds or bytes, and the loss it brings."""

    cost: float
    loss: float


def choose(groups: Sequence[Sequence[Option]], budget: float) -> tuple[int, ...]:
    """Index of the option of each group with the least sum of losses whose sum of costs is at most `budget`.

    The multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, chapter 11) by dynamic programming over the
    choices that no other undercuts in cost and in loss: exact as long as there are at most MAX_STATES of those, else
    within the budget and nearly the best. Of equal choices the one with lower indices is taken.

    Raises InputError where even the cheapest options exceed the budget, or a number is not finite.
    """
    for group in groups:
        if not group:
            raise InputError("every group needs at least one option")
    table = [np.array([(option.cost, option.loss) for option in group], np.float64) for group in groups]
    if not all(np.isfinite(options).all() for options in table):
        raise InputError("costs and losses have to be finite numbers")
    cheapest = [float(options[:, 0].min()) for options in table]
    left = _sums_after(cheapest)
    if left[0] > budget:
        raise InputError(f"the cheapest choice costs {left[0]:.6g}, more than the budget of {budget:.6g}")
    costs, losses = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # of every state kept: the one before, the option
    for index, options in enumerate(table):
        all_costs = (costs[:, None] + options[:, 0]).reshape(-1)
        all_losses = (losses[:, None] + options[:, 1]).reshape(-1)
        kept = _undercut_by_none(all_costs, all_losses, budget - left[index + 1])
        costs, losses = all_costs[kept], all_losses[kept]
        steps.append((kept // len(options), kept % len(options)))
    state = len(costs) - 1  # the dearest that is kept loses least
    chosen = []
    for before, option in reversed(steps):
        chosen.append(int(option[state]))
        state = int(before[state])
    return tuple(reversed(chosen))


def _sums_after(values: Sequence[float]) -> list[float]:
    """For every index the sum of the values from it on, and 0 at the end."""
    sums = [0.0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def _undercut_by_none(costs: NDArray[np.float64], losses: NDArray[np.float64], limit: float) -> NDArray[np.int64]:
    """Indices of the states of cost up to `limit` that are cheaper than all that lose no more; by rising cost."""
    order: NDArray[np.int64] = np.lexsort((np.arange(len(costs)), losses, costs))
    # the cheapest passes even where the sums were rounded in another order than those of the limit
    order = order[costs[order] <= max(limit, float(costs[order[0]]))]
    lowest_before = np.concatenate([[np.inf], np.minimum.accumulate(losses[order])[:-1]])
    order = order[losses[order] < lowest_before]
    if len(order) <= MAX_STATES:
        return order
    first, last = float(costs[order[0]]), float(costs[order[-1]])
    parts = ((costs[order] - first) / (last - first) * (MAX_STATES - 1)).astype(np.int64)
    is_last = np.append(parts[1:] != parts[:-1], True)  # the dearest of a part loses least of it
    is_last[0] = True
    kept: NDArray[np.int64] = order[is_last]
    return kept
