"""Grids of stored types: which values weights can take, rounding to the nearest, and their bytes; searches no scale.

A weight [out, in] has groups of `group_size` inputs; value = scale * code + offset, low <= code <= high. Block layouts
are those of `formats.gguf_types`, whose decoders give exactly the values of these grids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType
from subsecond.models.weights import StoredTensor

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Bytes = NDArray[np.uint8]

ROUND_CHUNK = 1 << 18
"""Weights that are rounded at a time, so that temporaries stay in cache."""
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class GridFormat:
    """Codes `low` to `high` in groups of `group_size` inputs; `has_offsets` where code 0 need not stand for 0."""

    group_size: int
    low: int
    high: int
    has_offsets: bool = False

    @property
    def num_codes(self) -> int:
        """How many values a group has."""
        return self.high - self.low + 1


GRID_FORMATS: Mapping[TensorType, GridFormat] = MappingProxyType(
    {
        TensorType.Q4_0: GridFormat(32, -8, 7),
        TensorType.Q4_1: GridFormat(32, 0, 15, True),
        TensorType.Q5_0: GridFormat(32, -16, 15),
        TensorType.Q8_0: GridFormat(32, -127, 127),
        TensorType.Q2_K: GridFormat(16, 0, 3, True),
        TensorType.Q3_K: GridFormat(16, -4, 3),
        TensorType.Q4_K: GridFormat(32, 0, 15, True),
        TensorType.Q5_K: GridFormat(32, 0, 31, True),
        TensorType.Q6_K: GridFormat(16, -32, 31),
    }
)

PLAIN_TYPES = (TensorType.Q4_0, TensorType.Q5_0, TensorType.Q8_0)
"""Types whose groups have a scale as float16 each, and nothing else."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The values that a weight of `shape` can take in one stored type.

    scales   float32 [out, groups], the distance of neighbouring values; may be negative, 0 for a group of zeros
    offsets  float32 [out, groups], what code 0 stands for; None where that is 0
    header   uint8 [out, blocks, bytes]: what the blocks store of both
    """

    type: TensorType
    shape: tuple[int, int]
    scales: Floats
    offsets: Floats | None
    header: Bytes

    @property
    def format(self) -> GridFormat:
        """Codes and groups of the type."""
        return GRID_FORMATS[self.type]

    def round(self, weight: Floats) -> Codes:
        """The code of the nearest value of each weight float32 [out, in]."""
        codes = np.empty(self.shape, np.int8)
        inverses = inverse(self.scales)
        size, step = self.format.group_size, max(1, ROUND_CHUNK // self.shape[1])
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            scaled = weight[rows].reshape(-1, self.scales.shape[1], size)
            if self.offsets is not None:
                scaled = scaled - self.offsets[rows, :, None]
            scaled = np.rint(scaled * inverses[rows, :, None])
            np.clip(scaled, self.format.low, self.format.high, out=scaled)
            codes[rows] = scaled.reshape(-1, self.shape[1])
        return codes

    def values(self, codes: Codes) -> Floats:
        """What `codes` int8 [out, in] stand for, float32, as their stored blocks decode."""
        groups = codes.reshape(*self.scales.shape, -1).astype(np.float32)
        groups *= self.scales[..., None]
        if self.offsets is not None:
            groups += self.offsets[..., None]
        return groups.reshape(self.shape)

    def store(self, codes: Codes) -> StoredTensor:
        """The weight of these codes, int8 [out, in], as its blocks."""
        layout = BLOCK_LAYOUTS[self.type]
        shifted = (codes - np.int8(0 if self.type is TensorType.Q8_0 else self.format.low)).view(np.uint8)
        blocks = shifted.reshape(*self.header.shape[:2], layout.num_elements)
        raw = np.concatenate(_PACKERS[self.type](blocks, self.header), axis=-1)
        return StoredTensor(self.type, self.shape, np.ascontiguousarray(raw).reshape(-1))

    def rows(self, start: int, end: int) -> Grid:
        """The grid of the outputs [start, end)."""
        offsets = None if self.offsets is None else self.offsets[start:end]
        shape = (end - start, self.shape[1])
        return Grid(self.type, shape, self.scales[start:end], offsets, self.header[start:end])


def check_weight(weight: Floats, tensor_type: TensorType) -> None:
    """InputError unless `weight` is a finite float32 matrix whose width the blocks of `tensor_type` divide."""
    if weight.ndim != 2 or weight.dtype != np.float32 or 0 in weight.shape:
        raise InputError(f"a weight is float32 [out, in]; this one is {weight.dtype} of shape {weight.shape}")
    if tensor_type not in GRID_FORMATS:
        allowed = ", ".join(known.name for known in GRID_FORMATS)
        raise UnsupportedError(f"weights cannot be rounded to {tensor_type.name}; give one of {allowed}")
    size = BLOCK_LAYOUTS[tensor_type].num_elements
    if weight.shape[1] % size:
        raise UnsupportedError(
            f"a weight of width {weight.shape[1]} has no {tensor_type.name} blocks, which hold {size} inputs; "
            "use Q4_0, Q5_0 or Q8_0 (32 inputs) or F16"
        )
    # one sum finds any inf or nan; it overflows to inf only where weights are far beyond what float16 scales hold
    with np.errstate(all="ignore"):
        is_finite = bool(np.isfinite(np.add.reduce(np.abs(weight).max(axis=1))))
    if not is_finite:
        raise InputError("the weight holds inf or nan, which no grid can hold; check the checkpoint it comes from")


def plain_grid(tensor_type: TensorType, scales: Floats) -> Grid:
    """A grid of Q4_0, Q5_0 or Q8_0 with float32 `scales` [out, groups], which are rounded to float16."""
    half = to_half(scales)
    shape = (scales.shape[0], scales.shape[1] * GRID_FORMATS[tensor_type].group_size)
    return Grid(tensor_type, shape, half.astype(np.float32), None, _half_bytes(half))


def offset_grid(scales: Floats, offsets: Floats) -> Grid:
    """A grid of Q4_1 with float32 `scales` and `offsets` [out, groups], both rounded to float16."""
    halves = to_half(scales), to_half(offsets)
    shape = (scales.shape[0], scales.shape[1] * GRID_FORMATS[TensorType.Q4_1].group_size)
    header = np.concatenate([_half_bytes(half) for half in halves], axis=-1)
    return Grid(TensorType.Q4_1, shape, halves[0].astype(np.float32), halves[1].astype(np.float32), header)


def super_grid(tensor_type: TensorType, scale: Floats, multipliers: NDArray[np.int8]) -> Grid:
    """A grid of Q6_K or Q3_K: group scale = scale [out, blocks] * multipliers int8 [out, blocks, 16]."""
    half = to_half(scale)
    scales = half.astype(np.float32)[..., None] * multipliers.astype(np.float32)
    shape = (scale.shape[0], scale.shape[1] * BLOCK_LAYOUTS[tensor_type].num_elements)
    stored = multipliers.view(np.uint8) if tensor_type is TensorType.Q6_K else _twelve_bytes_q3(multipliers)
    header = np.concatenate([stored, _half_bytes(half)], axis=-1)
    return Grid(tensor_type, shape, scales.reshape(len(scale), -1), None, header)


def super_offset_grid(
    tensor_type: TensorType, scale: Floats, minimum: Floats, multipliers: Bytes, minimum_multipliers: Bytes
) -> Grid:
    """A grid of Q4_K, Q5_K or Q2_K.

    Group scale = scale * multiplier and offset = -minimum * minimum_multiplier; both numbers float32 [out, blocks],
    multipliers uint8 [out, blocks, groups of a block] of six bits, of Q2_K four.
    """
    half, half_minimum = to_half(scale), to_half(minimum)
    scales = half.astype(np.float32)[..., None] * multipliers.astype(np.float32)
    offsets = -(half_minimum.astype(np.float32)[..., None] * minimum_multipliers.astype(np.float32))
    heads = [_half_bytes(half), _half_bytes(half_minimum)]
    if tensor_type is TensorType.Q2_K:
        parts = [multipliers | (minimum_multipliers << np.uint8(4)), *heads]
    else:
        parts = [*heads, _twelve_bytes(multipliers, minimum_multipliers)]
    shape = (scale.shape[0], scale.shape[1] * BLOCK_LAYOUTS[tensor_type].num_elements)
    flat = scales.reshape(len(scale), -1), offsets.reshape(len(scale), -1)
    return Grid(tensor_type, shape, *flat, np.concatenate(parts, axis=-1))


def to_half(values: Floats) -> NDArray[np.float16]:
    """`values` as float16; InputError where that overflows."""
    if values.size and float(np.abs(values).max()) > _HALF_MAX:
        raise InputError(
            f"a scale of {float(np.abs(values).max()):g} does not fit float16 (at most {_HALF_MAX:g}); "
            "weights this large cannot be stored in blocks, keep this tensor as F32"
        )
    return values.astype(np.float16)


def inverse(scales: Floats) -> Floats:
    """1 / scales, 0 where that is not finite."""
    with np.errstate(all="ignore"):
        inverses: Floats = np.float32(1) / scales
    inverses[~np.isfinite(inverses)] = 0
    return inverses


def round_to_nearest(weight: Floats, grid: Grid) -> StoredTensor:
    """`weight` float32 [out, in] with every number rounded to the nearest value of `grid`."""
    return grid.store(grid.round(weight))


def nearest_grid(weight: Floats, tensor_type: TensorType) -> Grid:
    """A grid of Q4_0, Q5_0 or Q8_0 whose scales hold each group's largest weight, as ggml's reference quantizers.

    Its sign is that of the longer side of the codes; Q8_0 has none.
    """
    check_weight(weight, tensor_type)
    form = GRID_FORMATS[tensor_type]
    assert not form.has_offsets, "only formats without offsets have such a grid"
    groups = weight.reshape(len(weight), -1, form.group_size)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], -1)[..., 0]
    scales = np.abs(largest) / np.float32(127) if form.low == -127 else largest / np.float32(form.low)
    return plain_grid(tensor_type, scales.astype(np.float32))


def quantize_to_half(weight: Floats) -> StoredTensor:
    """`weight` as F16, rounded to the nearest; InputError for what overflows."""
    return StoredTensor(TensorType.F16, weight.shape, to_half(weight).reshape(-1).view(np.uint8))


def _half_bytes(half: NDArray[np.float16]) -> Bytes:
    return np.ascontiguousarray(half.astype("<f2"))[..., None].view(np.uint8)


def _twelve_bytes(scales: Bytes, minimums: Bytes) -> Bytes:
    """Eight scales and eight minimums of six bits, as `gguf_types._six_bit_scales` reads them."""
    four, six = np.uint8(4), np.uint8(6)
    first = scales[..., :4] | ((scales[..., 4:] >> four) << six)
    second = minimums[..., :4] | ((minimums[..., 4:] >> four) << six)
    third = (scales[..., 4:] & np.uint8(15)) | ((minimums[..., 4:] & np.uint8(15)) << four)
    return np.concatenate([first, second, third], axis=-1)


def _twelve_bytes_q3(multipliers: NDArray[np.int8]) -> Bytes:
    """Sixteen multipliers of -32 to 31: their low nibbles in eight bytes, their top two bits in four."""
    shifted = (multipliers + np.int8(32)).view(np.uint8)
    low = pack_fields(shifted & np.uint8(15), 8, 4)
    return np.concatenate([low, pack_fields(shifted >> np.uint8(4), 4, 2)], axis=-1)


def pack_fields(codes: Bytes, run: int, bits: int) -> Bytes:
    """Pack codes of `bits` bits [..., n]: each run of `run` bytes holds all its lowest fields first, then the next."""
    fields = 8 // bits
    runs = codes.reshape(*codes.shape[:-1], -1, fields, run)
    packed = runs[..., 0, :].copy()
    for index in range(1, fields):
        packed |= runs[..., index, :] << np.uint8(bits * index)
    return packed.reshape(*codes.shape[:-1], -1)


_Packer = Callable[[Bytes, Bytes], list[Bytes]]
_ONE, _TWO, _THREE, _FOUR, _FIFTEEN = (np.uint8(n) for n in (1, 2, 3, 4, 15))


def _fifth_bits(codes: Bytes) -> Bytes:
    return np.packbits(codes >> _FOUR, axis=-1, bitorder="little")


_PACKERS: Mapping[TensorType, _Packer] = MappingProxyType(
    {
        # blocks of codes, counted from 0, and headers -> the parts of a block in their order
        TensorType.Q4_0: lambda codes, head: [head, pack_fields(codes, 16, 4)],
        TensorType.Q4_1: lambda codes, head: [head, pack_fields(codes, 16, 4)],
        TensorType.Q5_0: lambda codes, head: [head, _fifth_bits(codes), pack_fields(codes & _FIFTEEN, 16, 4)],
        TensorType.Q8_0: lambda codes, head: [head, codes],
        TensorType.Q2_K: lambda codes, head: [head[..., :16], pack_fields(codes, 32, 2), head[..., 16:]],
        TensorType.Q3_K: lambda codes, head: [
            pack_fields(codes >> _TWO, 32, 1),
            pack_fields(codes & _THREE, 32, 2),
            head,
        ],
        TensorType.Q4_K: lambda codes, head: [head, pack_fields(codes, 32, 4)],
        TensorType.Q5_K: lambda codes, head: [
            head,
            pack_fields(codes >> _FOUR, 32, 1),
            pack_fields(codes & _FIFTEEN, 32, 4),
        ],
        TensorType.Q6_K: lambda codes, head: [
            pack_fields(codes & _FIFTEEN, 64, 4),
            pack_fields(codes >> _FOUR, 32, 2),
            head,
        ],
    }
)
