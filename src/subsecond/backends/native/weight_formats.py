"""Which packed format each weight of a graph gets; packs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Linear, weights_of
from subsecond.models.weights import WeightSource

Weights = Literal["stored", "int8", "int4"]
"""How linears read their weights. "stored": the blocks of the file, faithfully. "int8" and "int4": channel formats with
activations of eight bits, lossy and faster; the output head and tables stay as they are, or become Q8_0 where the file
has them unquantized."""

VECTOR_FORMAT = "vector"
CHANNEL_FORMATS = {"int8": "INT8", "int4": "INT4"}
UNQUANTIZED_FORMATS = ("F32", "F16", "BF16")
_TILE_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
_SUPER_BLOCK_FORMATS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
STORED_FORMATS = (*UNQUANTIZED_FORMATS, *_TILE_FORMATS, *_SUPER_BLOCK_FORMATS)
PACKED_FORMATS = (*STORED_FORMATS, *CHANNEL_FORMATS.values())
MAX_CHANNEL_INPUTS = 65536
_BLOCK_INPUTS = 32  # of Q8_0


def check_weights(weights: str) -> None:
    """InputError unless `weights` is a way to read weights."""
    if weights not in get_args(Weights):
        raise InputError(f"weights={weights!r} is not allowed; give one of {', '.join(get_args(Weights))}")


def choose_formats(graph: Graph, source: WeightSource, weights: Weights) -> dict[str, str]:
    """The packed format of every weight that `graph` reads, VECTOR_FORMAT for norms and biases.

    Raises UnsupportedError for a weight whose stored type has no kernels.
    """
    layers = _layer_linears(graph) if weights != "stored" else frozenset()
    return {name: _choose(source, name, weights, is_layer=name in layers) for name in graph.weights}


def _choose(source: WeightSource, name: str, weights: Weights, *, is_layer: bool) -> str:
    shape = source.shapes[name]
    if len(shape) == 1:
        return VECTOR_FORMAT
    stored = source.type_of(name).name
    if is_layer and shape[-1] <= MAX_CHANNEL_INPUTS:
        return CHANNEL_FORMATS[weights]
    if weights != "stored" and stored in UNQUANTIZED_FORMATS and len(shape) == 2 and shape[1] % _BLOCK_INPUTS == 0:
        return "Q8_0"
    if stored not in STORED_FORMATS:
        raise UnsupportedError(
            f"tensor {name!r} is stored as {stored}; the native kernels read {', '.join(STORED_FORMATS)}. "
            "Use a file of another quantization, or the torch backend"
        )
    return stored


def _layer_linears(graph: Graph) -> frozenset[str]:
    """Matrices that only linears of all rows read: neither the output head, nor tables, nor experts."""
    matrices: set[str] = set()
    others: set[str] = set()
    for op in graph.ops:
        is_layer = isinstance(op, Linear) and graph.values[op.output].rows == "all"
        (matrices if is_layer else others).update(weights_of(op))
    return frozenset(name for name in matrices - others if len(graph.weights[name]) == 2)


def weights_of_formats(formats: Mapping[str, str]) -> Weights:
    """The way to read weights that gave these formats."""
    found: tuple[Weights, ...] = ("int8", "int4")
    for weights in found:
        if CHANNEL_FORMATS[weights] in formats.values():
            return weights
    return "stored"
