"""Which packed format each weight of a graph gets; packs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Linear, weights_of
from subsecond.models.readings import DEFAULT_NAME
from subsecond.models.weights import WeightSource

Weights = Literal["stored", "int8", "int4", "nested8", "nested4", "sparse"]
"""A reading for the linears of all layers. "stored": the blocks of the file, faithfully. "int8" and "int4": channel
formats with activations of eight bits, lossy and faster; the output head and tables stay as they are, or become Q8_0
where the file has them unquantized. "nested8" and "nested4": the same precisions, read from one copy. "sparse": the
half precision weights of a pruned model without their zeros."""

VECTOR_FORMAT = "vector"
CHANNEL_FORMATS = {"int8": "INT8", "int4": "INT4", "nested8": "NESTED8", "nested4": "NESTED4"}
NESTED_READINGS = ("nested8", "nested4")  # of the same bytes
SPARSE_FORMAT, LIST_FORMAT = "F16_SPARSE", "F16_LIST"
SPARSE_FORMATS = (SPARSE_FORMAT, LIST_FORMAT)  # for some zeros, and for many
OTHER_READINGS = ("stored", "int8")  # of tables, output heads and experts
UNQUANTIZED_FORMATS = ("F32", "F16", "BF16")
_TILE_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
_SUPER_BLOCK_FORMATS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
MIXED = "mixed"  # stands for readings that differ from weight to weight
STORED_FORMATS = (*UNQUANTIZED_FORMATS, *_TILE_FORMATS, *_SUPER_BLOCK_FORMATS)
PACKED_FORMATS = (*STORED_FORMATS, *CHANNEL_FORMATS.values())
"""Formats whose size follows from a weight's shape: all but SPARSE_FORMATS."""
MEASURED_FORMATS = (*STORED_FORMATS, "INT8", "INT4")
"""Formats that the cost model knows; nested ones are read as these are."""
MAX_CHANNEL_INPUTS = 65536
MAX_LIST_INPUTS = 65536
_BLOCK_INPUTS = 32  # of Q8_0


def check_weights(weights: str) -> None:
    """InputError unless `weights` is a way to read weights."""
    if weights not in get_args(Weights):
        raise InputError(f"weights={weights!r} is not allowed; give one of {', '.join(get_args(Weights))}")


def readings_of(readings: Mapping[str, str], weights: Weights | None) -> Mapping[str, str]:
    """What is wanted of a model whose own readings are `readings`: these, or `weights` for all layers where given."""
    return readings if weights is None else {DEFAULT_NAME: weights}


def name_of_readings(readings: Mapping[str, str]) -> str:
    """The one reading of all layers, MIXED where weights have readings of their own."""
    if set(readings) <= {DEFAULT_NAME}:
        return readings.get(DEFAULT_NAME, "stored")
    return MIXED


def choose_formats(graph: Graph, source: WeightSource, readings: Mapping[str, str]) -> dict[str, str]:
    """The packed format of every weight that `graph` reads, VECTOR_FORMAT for norms and biases.

    `readings` are those of `models.readings`; SPARSE_FORMAT stands for any form without zeros. Beside lossy ones for
    the layers, tables and heads that are stored unquantized become Q8_0, as they do where "int8" is their own reading.

    Raises:
        FormatError: weights of one product have different readings, or a weight has one that it cannot have.
        UnsupportedError: a weight's stored type, or its reading, has no kernels.
    """
    layers = layer_linears(graph)
    default = readings.get(DEFAULT_NAME, "stored")
    wanted = {name: readings.get(name, default if name in layers else _beside(default)) for name in graph.weights}
    _check_products(graph, wanted)
    for name in graph.weights.keys() & readings.keys():
        if name not in layers and readings[name] not in OTHER_READINGS:
            raise FormatError(
                f"the reading of {name!r} is {readings[name]!r}; tables, output heads and experts can have "
                f"{' or '.join(OTHER_READINGS)}"
            )
    return {name: _choose(source, name, wanted[name], is_layer=name in layers) for name in graph.weights}


def _beside(reading: str) -> str:
    """The reading of tables and heads where that of the layers is `reading`."""
    return "int8" if reading in CHANNEL_FORMATS else "stored"


def _check_products(graph: Graph, wanted: Mapping[str, str]) -> None:
    """FormatError where weights that are multiplied as one have different readings."""
    for op in graph.ops:
        if isinstance(op, Linear) and len({wanted[name] for name in op.weights}) > 1:
            given = ", ".join(f"{name!r}: {wanted[name]!r}" for name in op.weights)
            raise FormatError(f"weights that are multiplied as one must share a reading; given are {given}")


def _choose(source: WeightSource, name: str, reading: str, *, is_layer: bool) -> str:
    shape = source.shapes[name]
    if len(shape) == 1:
        return VECTOR_FORMAT
    stored = source.type_of(name).name
    if is_layer and reading in CHANNEL_FORMATS and shape[-1] <= MAX_CHANNEL_INPUTS:
        return CHANNEL_FORMATS[reading]
    if is_layer and reading == "sparse":
        if stored not in UNQUANTIZED_FORMATS:
            raise UnsupportedError(
                f"tensor {name!r} is stored as {stored}; the reading 'sparse' is for pruned weights that are stored "
                f"unquantized: {', '.join(UNQUANTIZED_FORMATS)}. Use another reading, or prune the original model"
            )
        return SPARSE_FORMAT
    if reading == "int8" and stored in UNQUANTIZED_FORMATS and len(shape) == 2 and shape[1] % _BLOCK_INPUTS == 0:
        return "Q8_0"
    if stored not in STORED_FORMATS:
        raise UnsupportedError(
            f"tensor {name!r} is stored as {stored}; the native kernels read {', '.join(STORED_FORMATS)}. "
            "Use a file of another quantization, or the torch backend"
        )
    return stored


def layer_linears(graph: Graph) -> frozenset[str]:
    """Matrices that only linears of all rows read: neither the output head, nor tables, nor experts."""
    matrices: set[str] = set()
    others: set[str] = set()
    for op in graph.ops:
        is_layer = isinstance(op, Linear) and graph.values[op.output].rows == "all"
        (matrices if is_layer else others).update(weights_of(op))
    return frozenset(name for name in matrices - others if len(graph.weights[name]) == 2)


def name_formats(graph: Graph, formats: Mapping[str, str]) -> str:
    """The readings of the linears of layers that gave these formats, "faithful" for stored ones, joined by "+"."""
    names = {packed: reading for reading, packed in CHANNEL_FORMATS.items()} | dict.fromkeys(SPARSE_FORMATS, "sparse")
    found = {names.get(formats[name], "faithful") for name in layer_linears(graph)}
    return "+".join(name for name in ("faithful", *CHANNEL_FORMATS, "sparse") if name in found) or "faithful"
