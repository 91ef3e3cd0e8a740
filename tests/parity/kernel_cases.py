"""Inputs and plain references for the parity tests of kernels; runs no kernel itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gguf
import numpy as np
from numpy.typing import NDArray

from subsecond import _native
from subsecond.backends.native.weight_formats import STORED_FORMATS

Floats = NDArray[np.float32]
ISAS: list[str] = _native.available_isas()
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
I16_ISAS = [isa for isa in ISAS if isa != "amx"]
FORMATS = STORED_FORMATS
BLOCK_INPUTS = {name: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0] for name in FORMATS}
SCALES_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)} | dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))
"""Byte offsets of the float16 fields of a stored block; (0,) where not listed."""


@dataclass(frozen=True)
class StoredWeight:
    """A stored tensor, what it decodes to [n, k], and its packed form."""

    format: str
    values: Floats
    packed: NDArray[np.uint8]

    def native(self) -> _native.kernels.Weight:
        """The handle that kernels take."""
        num_outputs, num_inputs = self.values.shape
        return _native.kernels.weight(self.format, num_outputs, num_inputs, self.packed)


def random_weight(
    name: str, n: int, k: int, rng: np.random.Generator, *, gain: float = 1.0, damaged: int | None = None
) -> StoredWeight:
    """Random stored blocks with moderate scales, decoded by the `gguf` package; `gain` is for plain formats.

    `damaged` are the bits of the first scale of row 3, where it is another one.
    """
    kind = gguf.GGMLQuantizationType[name]
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    assert k % per_block == 0
    if per_block == 1:
        plain = rng.standard_normal((n, k), dtype=np.float32) * np.float32(gain / 16)
        stored = gguf.quants.quantize(plain, kind)
    else:
        stored = rng.integers(0, 256, (n, k // per_block, block_bytes), dtype=np.uint8)
        for at in SCALES_AT.get(name, (0,)):
            scale = rng.uniform(0.002, 0.02, stored.shape[:2]).astype(np.float16)
            stored[..., at : at + 2] = scale.view(np.uint8).reshape(*scale.shape, 2)
        if damaged is not None:
            at = SCALES_AT.get(name, (0,))[0]
            stored[3, 0, at : at + 2] = np.array([damaged], np.uint16).view(np.uint8)
        stored = stored.reshape(n, -1)
    values = gguf.quants.dequantize(stored, kind).reshape(n, k).astype(np.float32)
    packed = np.zeros(_native.packed_size(name, n, k), np.uint8)
    _native.pack_into(name, n, k, np.ascontiguousarray(stored).view(np.uint8).reshape(-1), packed)
    return StoredWeight(name, values, packed)


def round_bf16(x: NDArray[np.floating]) -> Floats:
    """Round to the nearest bfloat16, ties to even; finite values only."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def round_bf16_away(x: NDArray[np.floating]) -> Floats:
    """Round to the nearest bfloat16, ties away from zero; finite values only."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def activate(x: NDArray[np.float64], activation: str) -> NDArray[np.float64]:
    """An activation in double precision."""
    if activation == "silu":
        return np.asarray(x / (1 + np.exp(-x)))
    if activation == "gelu":
        return np.asarray(x * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2)) / 2)
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def round_i16(x: Floats) -> NDArray[np.float64]:
    """Round every block of 32 inputs to 16-bit codes times a scale; finite values only."""
    rows, k = x.shape
    blocks = np.pad(x, ((0, 0), (0, -k % 32))).reshape(rows, -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    inverse = np.float32(32767) / np.where(largest > 1e-30, largest, np.float32(1))
    scale = largest * (np.float32(1) / np.float32(32767))
    return np.asarray((np.rint(blocks * inverse).astype(np.float64) * scale).reshape(rows, -1)[:, :k])


def round_f16(x: NDArray[np.floating]) -> Floats:
    """Round to the nearest IEEE half precision, ties to even; beyond its range to the largest. NaN stays."""
    return np.asarray(np.clip(x, -65504, 65504).astype(np.float16), np.float32)


def rms_norm(x: NDArray[np.floating], weight: Floats, eps: float) -> NDArray[np.float64]:
    """The reference norm in double precision."""
    x = x.astype(np.float64)
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight)


def rotary_table(num_positions: int, dims: int, theta: float = 10000.0) -> Floats:
    """cos and sin of every pair, [positions, dims]."""
    angles = np.outer(np.arange(num_positions), theta ** -(np.arange(0, dims, 2) / dims))
    return np.stack([np.cos(angles), np.sin(angles)], -1).reshape(num_positions, dims).astype(np.float32)


def rotate(
    x: NDArray[np.floating],
    table: Floats,
    positions: NDArray[np.integer],
    *,
    is_interleaved: bool,
    dtype: type[np.floating] = np.float64,
) -> NDArray[np.floating]:
    """Rotate heads [rows, heads, head_dim], every operation rounded to `dtype`."""
    dims = table.shape[1]
    cos, sin = (table[positions].astype(dtype)[:, None, part::2] for part in (0, 1))
    out = x.astype(dtype)
    first, second = (
        (slice(0, dims, 2), slice(1, dims, 2)) if is_interleaved else (slice(0, dims // 2), slice(dims // 2, dims))
    )
    a, b = x[..., first].astype(dtype), x[..., second].astype(dtype)
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


def misaligned(rows: Floats, *, shift: int = 1) -> Floats:
    """The same matrix as a view whose rows start at odd addresses and are further apart than they are wide."""
    memory = np.full(rows.shape[0] * (rows.shape[1] + 7) + shift, np.nan, np.float32)
    view = memory[shift:].reshape(rows.shape[0], rows.shape[1] + 7)[:, : rows.shape[1]]
    view[:] = rows
    return view
