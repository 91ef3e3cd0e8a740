"""Stages that would undo what an earlier one did are refused, however many are between them."""

from __future__ import annotations

import pytest

from subsecond.compress.recipe import read_recipe
from subsecond.core.errors import InputError


def recipe_of(*kinds: str) -> str:
    return "version = 1\n" + "".join(f'[[stage]]\nkind = "{kind}"\n' for kind in kinds)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("quantize", "prune-width"), "rounded already and round them again; put quantize last"),
        (("sparsify", "prune-depth"), "put sparsify after prune-depth"),
        (("sparsify", "trim-vocabulary", "prune-heads"), "put sparsify after prune-heads"),
    ],
)
def test_orders_that_undo_are_refused(kinds: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recipe(recipe_of(*kinds), "own", "own.toml")


def test_other_orders_are_not() -> None:
    kinds = ("trim-vocabulary", "prune-depth", "prune-width", "sparsify", "quantize")
    assert [stage.kind for stage in read_recipe(recipe_of(*kinds), "own", "own.toml").stages] == list(kinds)
