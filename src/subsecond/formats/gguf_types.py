"""GGUF tensor types: their ids, block sizes and numpy dequantization; reads no files.

Block layouts follow ggml (ggml-common.h, ggml-quants.c). Arithmetic is float32 in ggml's order of operations, so
results equal those of ggml's reference dequantization bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError, UnsupportedError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

SUPER_BLOCK = 256
"""Elements in a block of the K types."""

CHUNK_ELEMENTS = 1 << 20
"""Elements dequantized at a time, so that temporaries stay small whatever the tensor's size."""


class TensorType(IntEnum):
    """Element type of a GGUF tensor; the value is the id stored in the file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Size of the smallest unit of a tensor type: `num_elements` values stored in `num_bytes` bytes."""

    num_elements: int
    num_bytes: int


BLOCK_LAYOUTS: Mapping[TensorType, BlockLayout] = MappingProxyType(
    {
        TensorType.F32: BlockLayout(1, 4),
        TensorType.F16: BlockLayout(1, 2),
        TensorType.BF16: BlockLayout(1, 2),
        TensorType.F64: BlockLayout(1, 8),
        TensorType.I8: BlockLayout(1, 1),
        TensorType.I16: BlockLayout(1, 2),
        TensorType.I32: BlockLayout(1, 4),
        TensorType.I64: BlockLayout(1, 8),
        TensorType.Q4_0: BlockLayout(32, 18),
        TensorType.Q4_1: BlockLayout(32, 20),
        TensorType.Q5_0: BlockLayout(32, 22),
        TensorType.Q5_1: BlockLayout(32, 24),
        TensorType.Q8_0: BlockLayout(32, 34),
        TensorType.Q8_1: BlockLayout(32, 36),
        TensorType.IQ4_NL: BlockLayout(32, 18),
        TensorType.MXFP4: BlockLayout(32, 17),
        TensorType.NVFP4: BlockLayout(64, 36),
        TensorType.Q2_K: BlockLayout(SUPER_BLOCK, 84),
        TensorType.Q3_K: BlockLayout(SUPER_BLOCK, 110),
        TensorType.Q4_K: BlockLayout(SUPER_BLOCK, 144),
        TensorType.Q5_K: BlockLayout(SUPER_BLOCK, 176),
        TensorType.Q6_K: BlockLayout(SUPER_BLOCK, 210),
        TensorType.Q8_K: BlockLayout(SUPER_BLOCK, 292),
        TensorType.IQ2_XXS: BlockLayout(SUPER_BLOCK, 66),
        TensorType.IQ2_XS: BlockLayout(SUPER_BLOCK, 74),
        TensorType.IQ2_S: BlockLayout(SUPER_BLOCK, 82),
        TensorType.IQ3_XXS: BlockLayout(SUPER_BLOCK, 98),
        TensorType.IQ3_S: BlockLayout(SUPER_BLOCK, 110),
        TensorType.IQ1_S: BlockLayout(SUPER_BLOCK, 50),
        TensorType.IQ1_M: BlockLayout(SUPER_BLOCK, 56),
        TensorType.IQ4_XS: BlockLayout(SUPER_BLOCK, 136),
        TensorType.TQ1_0: BlockLayout(SUPER_BLOCK, 54),
        TensorType.TQ2_0: BlockLayout(SUPER_BLOCK, 66),
    }
)


def dequantize(tensor_type: TensorType, raw: Bytes, shape: tuple[int, ...]) -> Floats:
    """Return the float32 values of `raw` (stored bytes, 1-D uint8) as a new array of `shape`.

    Raises UnsupportedError for a type without a decoder and FormatError if `raw` has the wrong length for `shape`.
    """
    decode = _DECODERS.get(tensor_type)
    if decode is None:
        supported = ", ".join(known.name for known in _DECODERS)
        raise UnsupportedError(
            f"tensors of type {tensor_type.name} cannot be dequantized; supported types are {supported}"
        )
    layout = BLOCK_LAYOUTS[tensor_type]
    num_elements = math.prod(shape)
    num_blocks, remainder = divmod(num_elements, layout.num_elements)
    if remainder or raw.ndim != 1 or raw.dtype != np.uint8 or raw.size != num_blocks * layout.num_bytes:
        raise FormatError(
            f"{raw.size} bytes do not hold a {tensor_type.name} tensor of shape {shape}: "
            f"each {layout.num_elements} elements take {layout.num_bytes} bytes"
        )
    values = np.empty((num_blocks, layout.num_elements), dtype=np.float32)
    blocks = raw.reshape(num_blocks, layout.num_bytes)
    step = max(1, CHUNK_ELEMENTS // layout.num_elements)
    with np.errstate(
        all="ignore"
    ):  # damaged blocks may hold inf and nan scales: their values follow, without a warning
        for start in range(0, num_blocks, step):
            values[start : start + step] = decode(blocks[start : start + step])
    return values.reshape(shape)


def quantize_q8_0(values: Floats) -> Bytes:
    """The stored bytes (1-D uint8) of float32 [rows, width] as Q8_0, width a multiple of 32; ggml's reference rounding.

    A block whose largest magnitude is not finite or overflows float16 gets such a scale, so that the damage shows.
    """
    blocks = values.reshape(-1, 32)
    with np.errstate(all="ignore"):
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        inverse = np.where(np.isfinite(scale) & (scale > 0), np.float32(1) / scale, np.float32(0))
        scaled = np.nan_to_num(blocks * inverse, nan=0.0, posinf=0.0, neginf=0.0)
        codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)  # halves away from zero
        stored = np.concatenate([scale.astype("<f2").view(np.uint8), codes.view(np.uint8)], axis=1)
    return stored.reshape(-1)


def can_dequantize(tensor_type: TensorType) -> bool:
    """Whether `dequantize` knows the type."""
    return tensor_type in _DECODERS


def _plain(dtype: str, blocks: Bytes, start: int, end: int) -> Floats:
    """Read the bytes [start, end) of every block as little-endian numbers, widened to float32."""
    return np.ascontiguousarray(blocks[:, start:end]).view(dtype).astype(np.float32)


def _half(blocks: Bytes, start: int) -> Floats:
    """Read the float16 at byte `start` of every block as a [blocks, 1] float32 array."""
    return _plain("<f2", blocks, start, start + 2)


def _fields(packed: Bytes, run: int, bits: int) -> Bytes:
    """Unpack `bits`-wide fields: each run of `run` bytes holds all its lowest fields first, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(packed.shape[0], -1, 1, run)
    return ((runs >> shifts) & np.uint8((1 << bits) - 1)).reshape(packed.shape[0], -1)


def _signed(values: Bytes, offset: int) -> Floats:
    """Return small unsigned codes minus `offset` as float32."""
    return (values.astype(np.int16) - np.int16(offset)).astype(np.float32)


def _f32(blocks: Bytes) -> Floats:
    return _plain("<f4", blocks, 0, 4)


def _f16(blocks: Bytes) -> Floats:
    return _half(blocks, 0)


def _bf16(blocks: Bytes) -> Floats:
    high: NDArray[np.uint32] = np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << np.uint32(16)
    return high.view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _signed(_fields(blocks[:, 2:], 16, 4), 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _fields(blocks[:, 4:], 16, 4).astype(np.float32) + _half(blocks, 2)


def _five_bit_codes(high: Bytes, low: Bytes) -> Bytes:
    """Join 32 fifth bits (four bytes, lowest bit first) with 32 low nibbles."""
    top = np.unpackbits(high, axis=1, bitorder="little")
    return _fields(low, 16, 4) | (top << np.uint8(4))


def _q5_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _signed(_five_bit_codes(blocks[:, 2:6], blocks[:, 6:]), 16)


def _q5_1(blocks: Bytes) -> Floats:
    codes = _five_bit_codes(blocks[:, 4:8], blocks[:, 8:])
    return _half(blocks, 0) * codes.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _plain("i1", blocks, 2, 34)


def _scaled_groups(scales: Floats, codes: Floats) -> Floats:
    """Multiply each group of a block's codes by its own scale; scales [blocks, groups], codes [blocks, elements]."""
    num_blocks, num_groups = scales.shape
    grouped = codes.reshape(num_blocks, num_groups, -1)
    return (scales[:, :, None] * grouped).reshape(num_blocks, -1)


def _minus_group_minimum(values: Floats, minimums: Floats) -> Floats:
    """Subtract each group's own minimum; minimums [blocks, groups], values [blocks, elements]."""
    num_blocks, num_groups = minimums.shape
    grouped = values.reshape(num_blocks, num_groups, -1)
    return (grouped - minimums[:, :, None]).reshape(num_blocks, -1)


def _q2_k(blocks: Bytes) -> Floats:
    packed, codes = blocks[:, :16], _fields(blocks[:, 16:80], 32, 2).astype(np.float32)
    scales = _half(blocks, 80) * (packed & np.uint8(15)).astype(np.float32)
    minimums = _half(blocks, 82) * (packed >> np.uint8(4)).astype(np.float32)
    return _minus_group_minimum(_scaled_groups(scales, codes), minimums)


def _q3_k(blocks: Bytes) -> Floats:
    not_subtracted = _fields(blocks[:, :32], 32, 1)
    codes = _signed(_fields(blocks[:, 32:96], 32, 2) | (not_subtracted << np.uint8(2)), 4)
    low = _fields(blocks[:, 96:104], 8, 4)
    high = _fields(blocks[:, 104:108], 4, 2)
    scales = _half(blocks, 108) * _signed(low | (high << np.uint8(4)), 32)
    return _scaled_groups(scales, codes)


def _six_bit_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """Unpack the 12 bytes of Q4_K and Q5_K into 8 scales and 8 minimums of six bits each.

    Bytes 0-3 and 4-7 hold scales and minimums 0-3 in their low six bits and the top two bits of number 4-7 above them;
    bytes 8-11 hold the low nibbles of scales (low) and minimums (high) 4-7.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    six, top = np.uint8(63), np.uint8(0x30)
    scales = np.concatenate([first & six, (third & np.uint8(15)) | ((first >> np.uint8(2)) & top)], axis=1)
    minimums = np.concatenate([second & six, (third >> np.uint8(4)) | ((second >> np.uint8(2)) & top)], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _scaled_with_minimum(blocks: Bytes, codes: Bytes) -> Floats:
    """Finish Q4_K and Q5_K, whose heads are alike: scale, minimum and 12 bytes of group scales."""
    scales, minimums = _six_bit_scales(blocks[:, 4:16])
    scaled = _scaled_groups(_half(blocks, 0) * scales, codes.astype(np.float32))
    return _minus_group_minimum(scaled, _half(blocks, 2) * minimums)


def _q4_k(blocks: Bytes) -> Floats:
    return _scaled_with_minimum(blocks, _fields(blocks[:, 16:], 32, 4))


def _q5_k(blocks: Bytes) -> Floats:
    high = _fields(blocks[:, 16:48], 32, 1)
    return _scaled_with_minimum(blocks, _fields(blocks[:, 48:], 32, 4) | (high << np.uint8(4)))


def _q6_k(blocks: Bytes) -> Floats:
    low = _fields(blocks[:, :128], 64, 4)
    high = _fields(blocks[:, 128:192], 32, 2)
    codes = _signed(low | (high << np.uint8(4)), 32)
    return _scaled_groups(_half(blocks, 208) * _plain("i1", blocks, 192, 208), codes)


_IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)
"""What the 16 codes of IQ4_NL and IQ4_XS stand for (kvalues_iq4nl of ggml)."""

_FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)
"""Twice what the 16 codes of MXFP4 stand for."""


def _iq4_nl(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _IQ4_VALUES[_fields(blocks[:, 2:], 16, 4)]


def _iq4_xs(blocks: Bytes) -> Floats:
    low = _fields(blocks[:, 4:8], 1, 4)
    high = _fields(blocks[:, 2:4], 1, 2)
    scales = _half(blocks, 0) * _signed(low | (high << np.uint8(4)), 32)
    return _scaled_groups(scales, _IQ4_VALUES[_fields(blocks[:, 8:], 16, 4)])


def _mxfp4(blocks: Bytes) -> Floats:
    """The scale is half of 2 ** (byte - 127), by its bits as float32; for bytes 0 and 1 it is sub-normal."""
    exponents = blocks[:, :1].astype(np.uint32)
    bits = np.where(exponents < 2, np.uint32(0x00200000) << exponents, (exponents - np.uint32(1)) << np.uint32(23))
    return bits.view(np.float32) * _FP4_VALUES[_fields(blocks[:, 1:], 16, 4)]


def _tq2_0(blocks: Bytes) -> Floats:
    return _half(blocks, 64) * _signed(_fields(blocks[:, :64], 32, 2), 1)


_DECODERS: Mapping[TensorType, Callable[[Any], Floats]] = MappingProxyType(
    {
        TensorType.F32: _f32,
        TensorType.F16: _f16,
        TensorType.BF16: _bf16,
        TensorType.Q4_0: _q4_0,
        TensorType.Q4_1: _q4_1,
        TensorType.Q5_0: _q5_0,
        TensorType.Q5_1: _q5_1,
        TensorType.Q8_0: _q8_0,
        TensorType.Q2_K: _q2_k,
        TensorType.Q3_K: _q3_k,
        TensorType.Q4_K: _q4_k,
        TensorType.Q5_K: _q5_k,
        TensorType.Q6_K: _q6_k,
        TensorType.IQ4_NL: _iq4_nl,
        TensorType.IQ4_XS: _iq4_xs,
        TensorType.MXFP4: _mxfp4,
        TensorType.TQ2_0: _tq2_0,
    }
)
