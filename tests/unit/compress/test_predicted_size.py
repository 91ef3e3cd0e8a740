"""What a recipe is said to leave of a model follows from the shapes and the settings."""

from __future__ import annotations

import math

import pytest

from subsecond.compress.predicted_size import predicted_bytes
from subsecond.compress.recipe import read_recipe
from tests.unit.tiny_decoder import TINY, tiny_graph

FEED_FORWARD = 3 * TINY.width * TINY.ff_width * TINY.num_layers
TABLE = TINY.vocab_size * TINY.width
ATTENTION = sum(math.prod(shape) for name, shape in tiny_graph().weights.items() if "attn" in name and len(shape) == 2)


@pytest.mark.parametrize(
    ("stages", "expected_bits"),
    [
        ('[[stage]]\nkind = "rotate"\n', 16 * (ATTENTION + FEED_FORWARD + 2 * TABLE)),
        ('[[stage]]\nkind = "quantize"\nmethod = "nearest"\n', 4.5 * (ATTENTION + FEED_FORWARD) + 8.5 * TABLE),
        ('[[stage]]\nkind = "prune-width"\nkeep = 0.75\n', 16 * (ATTENTION + 0.75 * FEED_FORWARD + TABLE)),
        (
            '[[stage]]\nkind = "prune-depth"\nkeep = 0.5\n[[stage]]\nkind = "quantize"\nbits = "8"\n',
            8.5 * (0.5 * (ATTENTION + FEED_FORWARD) + TABLE),
        ),
        ('[[stage]]\nkind = "sparsify"\ndensity = 0.25\n', 5 * (ATTENTION + FEED_FORWARD) + 16 * TABLE),
    ],
)
def test_bytes_follow_from_shapes_and_settings(stages: str, expected_bits: float) -> None:
    recipe = read_recipe(f"version = 1\n{stages}", "r", "r.toml")
    assert predicted_bytes(tiny_graph(), recipe) == round(expected_bits / 8)
