"""The knapsack against every choice there is, and within its budget where there are too many."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from subsecond.compress import knapsack
from subsecond.compress.knapsack import Option, choose
from subsecond.core.errors import InputError


def totals(groups: list[list[Option]], chosen: tuple[int, ...]) -> tuple[float, float]:
    picked = [group[index] for group, index in zip(groups, chosen, strict=True)]
    return sum(option.cost for option in picked), sum(option.loss for option in picked)


def least_loss(groups: list[list[Option]], budget: float) -> float | None:
    """Of all choices within the budget."""
    every = (totals(groups, chosen) for chosen in itertools.product(*(range(len(group)) for group in groups)))
    return min((loss for cost, loss in every if cost <= budget), default=None)


def random_groups(seed: int, num_groups: int, num_options: int) -> list[list[Option]]:
    generator = np.random.default_rng(seed)
    return [
        [Option(float(generator.integers(1, 20)), float(generator.random())) for _ in range(num_options)]
        for _ in range(num_groups)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_it_is_exact(seed: int) -> None:
    groups = random_groups(seed, 5, 4)
    cheapest = sum(min(option.cost for option in group) for group in groups)
    for budget in np.linspace(cheapest - 1, cheapest + 60, 9):
        expected = least_loss(groups, budget)
        if expected is None:
            with pytest.raises(InputError, match="more than the budget"):
                choose(groups, budget)
            continue
        cost, loss = totals(groups, choose(groups, budget))
        assert cost <= budget
        assert loss == pytest.approx(expected)


def test_many_groups_stay_within_the_budget_and_near_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [
        [Option(option.cost + 0.1 * index, option.loss) for index, option in enumerate(group)]
        for group in random_groups(7, 40, 5)
    ]
    exact = totals(groups, choose(groups, 300.0))
    monkeypatch.setattr(knapsack, "MAX_STATES", 500)
    thinned = totals(groups, choose(groups, 300.0))
    assert thinned[0] <= 300.0
    assert exact[1] <= thinned[1] <= 1.02 * exact[1]


def test_a_budget_that_just_holds_the_cheapest_gives_it() -> None:
    groups = [[Option(0.1, 5.0), Option(0.2, 1.0)] for _ in range(30)]
    assert choose(groups, sum(0.1 for _ in range(30))) == (0,) * 30
    assert choose(groups, 100.0) == (1,) * 30


def test_equal_choices_give_the_first() -> None:
    assert choose([[Option(1, 1), Option(1, 1)], [Option(2, 0), Option(1, 0)]], 5) == (0, 1)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        choose([[Option(1, float("nan"))]], 5)
    with pytest.raises(InputError, match="at least one option"):
        choose([[]], 5)
    assert choose([], 0) == ()
