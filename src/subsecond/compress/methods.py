"""Chooses the type of a number of bits, and runs the method that was asked for on one weight; walks no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from subsecond.compress.gptq import Factor, GptqOptions, factorize, gptq
from subsecond.compress.hqq import HqqOptions, hqq
from subsecond.compress.output_error import QuantizationReport, report
from subsecond.compress.rounding import (
    GRID_FORMATS,
    PLAIN_TYPES,
    Floats,
    Grid,
    nearest_grid,
    quantize_to_half,
    round_to_nearest,
)
from subsecond.compress.scale_search import SearchOptions, importance_of, search_grid
from subsecond.compress.statistics import InputStatistics
from subsecond.compress.super_blocks import MULTIPLIERS, search_super_grid
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.formats.gguf_types import SUPER_BLOCK, TensorType
from subsecond.models.weights import StoredTensor

Method = Literal["nearest", "search", "gptq", "hqq"]
"""Methods that need one weight only. "nearest": the scale of the largest weight; "search": weighted scale search;
"gptq": that and error feedback; "hqq": no data. AWQ and AutoRound work on several weights (`awq`, `autoround`)."""

NEAREST_TYPES = (TensorType.F16, TensorType.Q8_0)
"""So little is lost in them that no method is needed."""
SLICE_ROWS = 8192
"""Of a large table: a method holds some arrays as large as what it works on."""
_LOW_BITS = {
    3: "3 bits multiply perplexity by 2.6 on SmolLM2-135M and by 1.65 on Qwen2.5-0.5B, calibrated",
    2: "2 bits without training make models of 1B parameters useless (perplexity 14 becomes 11,551 on Llama-3.2-1B)",
}
_TYPES = {
    # bits: (widths that are a multiple of 256, others)
    2: (TensorType.Q2_K, None),
    3: (TensorType.Q3_K, None),
    4: (TensorType.Q4_K, TensorType.Q4_0),
    5: (TensorType.Q5_K, TensorType.Q5_0),
    6: (TensorType.Q6_K, TensorType.Q8_0),
    8: (TensorType.Q8_0, TensorType.Q8_0),
    16: (TensorType.F16, TensorType.F16),
}


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """Options of all methods; each reads its own. `refitted` is of scales that gptq fits anew: fewer candidates do."""

    search: SearchOptions = field(default_factory=SearchOptions)
    refitted: SearchOptions = field(default_factory=lambda: SearchOptions(num_candidates=8))
    gptq: GptqOptions = field(default_factory=GptqOptions)
    hqq: HqqOptions = field(default_factory=HqqOptions)


def choose_type(num_bits: int, width: int, *, is_forced: bool = False, has_super_blocks: bool = True) -> TensorType:
    """The stored type for `num_bits` a weight, scales not counted, and this width.

    Raises UnsupportedError for 3 and 2 bits unless `is_forced`, and for a width that has no blocks of the type.
    """
    if num_bits not in _TYPES:
        raise InputError(f"weights of {num_bits} bits are not known; give one of {', '.join(map(str, _TYPES))}")
    if num_bits in _LOW_BITS and not is_forced:
        raise UnsupportedError(
            f"{_LOW_BITS[num_bits]}. Use 4 bits, with the most sensitive layers at more (recipe mixed), or say that it "
            "is forced"
        )
    wide, narrow = _TYPES[num_bits]
    chosen = wide if has_super_blocks and width % SUPER_BLOCK == 0 else narrow
    if chosen is None:
        raise UnsupportedError(
            f"{num_bits} bits are stored in super-blocks of {SUPER_BLOCK} inputs, which do not divide a width of "
            f"{width}; use 4 bits for this model"
        )
    if chosen is not TensorType.F16 and width % GRID_FORMATS[chosen].group_size:
        return TensorType.F16
    return chosen


def make_grid(
    weight: Floats,
    tensor_type: TensorType,
    statistics: InputStatistics | None,
    options: SearchOptions | None = None,
    factor: Factor | None = None,
) -> Grid:
    """The grid of the weighted scale search for any type; without statistics all inputs count alike.

    factor  for weights that GPTQ rounds, where an error costs what later inputs cannot make up for
    """
    importance = importance_of(statistics, weight.shape[-1])
    if factor is not None:
        importance = factor.importance
    if tensor_type in MULTIPLIERS:
        return search_super_grid(weight, tensor_type, importance, options)
    if tensor_type is TensorType.Q8_0:
        return nearest_grid(weight, tensor_type)  # clipping gains nothing at eight bits
    return search_grid(weight, tensor_type, importance, options)


def quantize(
    weight: Floats,
    tensor_type: TensorType,
    method: Method = "gptq",
    statistics: InputStatistics | None = None,
    options: MethodOptions | None = None,
    factor: Factor | None = None,
) -> tuple[StoredTensor, QuantizationReport]:
    """`weight` float32 [out, in] in `tensor_type` by `method`; F16 and Q8_0 are always rounded to the nearest.

    statistics  of the input; needed by gptq, with the Gram matrix
    factor      as in `gptq`
    """
    options = options or MethodOptions()
    if method not in get_args(Method):
        raise InputError(f"method {method!r} is not known; give one of {', '.join(get_args(Method))}")
    if tensor_type is TensorType.F16:
        stored = quantize_to_half(weight)
        return stored, report("nearest", weight, stored, statistics)
    if tensor_type in NEAREST_TYPES or method == "nearest":
        plain = tensor_type in GRID_FORMATS and not GRID_FORMATS[tensor_type].has_offsets
        grid = nearest_grid(weight, tensor_type) if plain and tensor_type not in MULTIPLIERS else None
        stored = round_to_nearest(weight, grid or make_grid(weight, tensor_type, None, options.search))
        return stored, report("nearest", weight, stored, statistics)
    if method == "hqq":
        if tensor_type is not TensorType.Q4_1:
            raise InputError(f"hqq fits zeros, which {tensor_type.name} has none of; give Q4_1")
        return hqq(weight, options.hqq, statistics)
    if method == "gptq":
        if statistics is None:
            raise InputError("gptq needs statistics of the input; without calibration text use hqq or search")
        factor = factor or factorize(statistics, options.gptq)
        is_refitted = tensor_type in PLAIN_TYPES and options.gptq.num_sweeps > 0
        search = options.refitted if is_refitted else options.search
        grid = make_grid(weight, tensor_type, statistics, search, factor)
        return gptq(weight, statistics, grid, options.gptq, factor)
    grid = make_grid(weight, tensor_type, statistics, options.search)
    stored = round_to_nearest(weight, grid)
    return stored, report("search", weight, stored, statistics)


def quantize_rows(
    weight: Floats,
    tensor_type: TensorType,
    method: Method,
    statistics: InputStatistics | None = None,
    options: MethodOptions | None = None,
    factor: Factor | None = None,
) -> tuple[StoredTensor, QuantizationReport]:
    """As `quantize`, SLICE_ROWS outputs at a time, so that a table of many takes little memory beside itself."""
    parts = [
        quantize(weight[start : start + SLICE_ROWS], tensor_type, method, statistics, options, factor)
        for start in range(0, len(weight), SLICE_ROWS)
    ]
    stored = StoredTensor(tensor_type, weight.shape, np.concatenate([part.raw for part, _ in parts]))
    _, first = parts[0]
    return stored, report(first.method, weight, stored, statistics, first.notes)
