"""How large a recipe will make a model, from its settings alone; times nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from subsecond.compress.recipe import Recipe
from subsecond.graph.graph import Graph

# Bits of a weight in blocks of 32 with a half-precision scale, by the bits of its codes.
BLOCK_BITS: Mapping[str, float] = {"2": 2.625, "3": 3.4375, "4": 4.5, "5": 5.5, "6": 6.5625, "8": 8.5, "16": 16.0}
_TABLE = "token_embd.weight"
_HEAD = "output.weight"


@dataclass(frozen=True, slots=True)
class Size:
    """Weights of the parts of a model, and the bits of each weight of layers and of tables (the head is one)."""

    attention: float
    feed_forward: float
    tables: float
    layer_bits: float
    table_bits: float

    @property
    def num_bytes(self) -> float:
        """Of all."""
        return ((self.attention + self.feed_forward) * self.layer_bits + self.tables * self.table_bits) / 8


def predicted_bytes(graph: Graph, recipe: Recipe) -> int:
    """Bytes of the weights that the recipe leaves of a model, norms and biases left out."""
    shapes = {name: math.prod(shape) for name, shape in graph.weights.items() if len(shape) > 1}
    tables = sum(count for name, count in shapes.items() if name in (_TABLE, _HEAD))
    feed_forward = sum(count for name, count in shapes.items() if ".ffn_" in name)
    rest = sum(shapes.values()) - tables - feed_forward
    size = Size(rest, feed_forward, tables, 16.0, 16.0)
    for stage in recipe.stages:
        size = _CHANGES[stage.kind](size, stage.settings)
        if stage.kind == "rotate" and _HEAD not in shapes:
            size = _with(size, tables=2 * size.tables)
    return round(size.num_bytes)


def _with(size: Size, **changes: float) -> Size:
    values = {name: getattr(size, name) for name in Size.__slots__}
    return Size(**{**values, **changes})


def _rotate(size: Size, settings: Any) -> Size:
    bits = {"f16": 16.0, "f32": 32.0}[settings.type]
    return _with(size, layer_bits=bits, table_bits=bits)


def _depth(size: Size, settings: Any) -> Size:
    return _with(size, attention=size.attention * settings.keep, feed_forward=size.feed_forward * settings.keep)


def _sparsify(size: Size, settings: Any) -> Size:
    # few weights are listed with their inputs and padded to groups of sixteen, of more a bit says which are there
    listed = 33 * settings.density + 0.25
    return _with(size, layer_bits=min(16.0, listed if listed <= 8 else 1 + 16 * settings.density))


def _quantize(size: Size, settings: Any) -> Size:
    bits = 5.0 if getattr(settings, "method", "") == "hqq" else BLOCK_BITS[settings.bits]
    return _with(size, layer_bits=bits, table_bits=_table_bits(settings))


def _mixed(size: Size, settings: Any) -> Size:
    bits = settings.bits if settings.budget == "bits" else BLOCK_BITS["5"]
    return _with(size, layer_bits=bits, table_bits=_table_bits(settings))


def _table_bits(settings: Any) -> float:
    return max(BLOCK_BITS[settings.head_bits], BLOCK_BITS[settings.table_bits])


_CHANGES: Mapping[str, Callable[[Size, Any], Size]] = {
    "rotate": _rotate,
    "trim-vocabulary": lambda size, _: size,
    "prune-depth": _depth,
    "prune-heads": lambda size, settings: _with(size, attention=size.attention * settings.keep),
    "prune-width": lambda size, settings: _with(size, feed_forward=size.feed_forward * settings.keep),
    "sparsify": _sparsify,
    "mixed": _mixed,
    "quantize": _quantize,
}
