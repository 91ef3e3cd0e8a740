"""A stored weight as the parts that compressed-tensors has for it; whether it is to have them is the caller's choice.

The layouts are those that `hf_quantized` reads: "pack-quantized" with codes of 4, 5 or 8 bits as `packed_codes` has
them, and "int-quantized" with rows of int8. Scales and zeros of groups of 32 inputs are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, CHUNK_ELEMENTS, TensorType, dequantize
from subsecond.models.packed_codes import pack_codes
from subsecond.models.weights import StoredTensor

GROUP_SIZE = 32
PLAIN_TYPES = (TensorType.F32, TensorType.F16, TensorType.BF16)
BYTE_TYPES = (TensorType.Q5_0, TensorType.IQ4_NL)
_PACKED_TYPES = (TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q8_0)
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class PackScheme:
    """What a group of `config_groups` says of its weights.

    strategy            "group": a scale for 32 inputs; "channel": one for an output
    has_int8_inputs     other engines round the rows of activations to eight bits too, while they run
    """

    format: Literal["pack-quantized", "int-quantized"]
    num_bits: int
    strategy: Literal["group", "channel"] = "group"
    is_symmetric: bool = True
    has_int8_inputs: bool = False

    def to_json(self) -> dict[str, object]:
        """The group without its targets."""
        weights = {
            "num_bits": self.num_bits,
            "type": "int",
            "symmetric": self.is_symmetric,
            "strategy": self.strategy,
            "group_size": GROUP_SIZE if self.strategy == "group" else None,
            "dynamic": False,
        }
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "weights": weights,
            "input_activations": inputs if self.has_int8_inputs else None,
            "output_activations": None,
            "format": self.format,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A tensor of a safetensors file: `data` uint8 holds its elements in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


Parts = Mapping[str, Part]


def pack(tensor: StoredTensor, *, has_five_bits: bool = True) -> tuple[PackScheme, Parts] | None:
    """The parts of a quantized matrix by name, and their scheme; None for a type that compressed-tensors cannot say.

    That is every type but Q4_0, Q5_0, Q8_0, IQ4_NL as `as_q8_0` has it, and Q4_1 where each minimum is minus an integer
    of 0 to 15 times the scale. Without `has_five_bits` Q5_0 is as `as_q8_0` has it, which engines with kernels of four
    and eight bits read.
    """
    if tensor.type is not TensorType.Q5_0 or not has_five_bits:
        tensor = as_q8_0(tensor)
    if tensor.type not in _PACKED_TYPES or len(tensor.shape) != 2:
        return None
    outputs, inputs = tensor.shape
    blocks = tensor.raw.reshape(outputs, inputs // GROUP_SIZE, BLOCK_LAYOUTS[tensor.type].num_bytes)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]
    if tensor.type is TensorType.Q8_0:
        return _pack_bytes(blocks, scales)
    if tensor.type is TensorType.Q5_0:
        return PackScheme("pack-quantized", 5), _parts(_five_bit_codes(blocks), scales, num_bits=5)
    zeros = None
    if tensor.type is TensorType.Q4_1:
        zeros = _integer_zeros(scales, np.ascontiguousarray(blocks[..., 2:4]).view("<f2")[..., 0])
        if zeros is None:
            return None
    nibbles = blocks[..., 2 if zeros is None else 4 :]
    codes = np.concatenate([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=-1)
    parts = _parts(codes.reshape(outputs, inputs), scales, num_bits=4)
    if zeros is None:
        return PackScheme("pack-quantized", 4), parts
    padded = np.zeros((-(-outputs // 8) * 8, zeros.shape[1]), np.uint8)
    padded[:outputs] = zeros
    words = np.ascontiguousarray(pack_codes(padded.T, 4).view("<u4").T)
    parts["weight_zero_point"] = Part("I32", words.shape, _bytes(words))
    return PackScheme("pack-quantized", 4, is_symmetric=False), parts


def pack_channels(values: NDArray[np.float32]) -> tuple[PackScheme, Parts]:
    """A matrix [outputs, inputs] as int8 with a scale for each output, for engines that round activations too.

    codes = round(w / s), s = max |w| / 127 of an output, the symmetric scheme of Jacob et al. 2017, arXiv 1712.05877.
    """
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    if not np.isfinite(scales).all():
        raise FormatError("a weight has values that are no finite numbers; int8 cannot hold them")
    codes = np.rint(values / np.where(scales > 0, scales, np.float32(1))).astype(np.int8)
    parts = {
        "weight": Part("I8", codes.shape, _bytes(codes)),
        "weight_scale": Part("F32", scales.shape, _bytes(scales.astype("<f4"))),
    }
    return PackScheme("int-quantized", 8, "channel", has_int8_inputs=True), parts


def as_q8_0(tensor: StoredTensor) -> StoredTensor:
    """A weight in Q5_0 or IQ4_NL as Q8_0, which holds the same values: integers of a byte times the scale; others as
    they are.
    """
    if tensor.type not in BYTE_TYPES:
        return tensor
    num_bytes = BLOCK_LAYOUTS[tensor.type].num_bytes
    stored = np.empty((tensor.raw.size // num_bytes, 34), np.uint8)
    for start, values in _chunks(tensor):
        place = slice(start // GROUP_SIZE, (start + values.size) // GROUP_SIZE)
        scales = np.ascontiguousarray(tensor.raw.reshape(-1, num_bytes)[place, :2])
        steps, values = scales.view("<f2").astype(np.float32), values.reshape(-1, GROUP_SIZE)
        with np.errstate(all="ignore"):
            codes = np.nan_to_num(np.rint(values / steps)).astype(np.int8)
            if not np.array_equal(codes * steps, values):  # damaged scales
                return tensor
        stored[place] = np.concatenate([scales, codes.view(np.uint8)], axis=1)
    return StoredTensor(TensorType.Q8_0, tensor.shape, stored.reshape(-1))


def to_plain(tensor: StoredTensor) -> StoredTensor:
    """The weight decoded: as F16, or as F32 where float16 would not hold its values; plain ones as they are."""
    if tensor.type in PLAIN_TYPES:
        return tensor
    halves = np.empty(math.prod(tensor.shape), "<f2")
    for start, values in _chunks(tensor):
        if not np.abs(values).max(initial=0) <= _HALF_MAX:
            return StoredTensor(TensorType.F32, tensor.shape, _bytes(tensor.dequantize().astype("<f4")))
        halves[start : start + values.size] = values
    return StoredTensor(TensorType.F16, tensor.shape, _bytes(halves))


def _chunks(tensor: StoredTensor) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The decoded elements in parts with the place of their first, so that a table is never decoded as a whole."""
    layout = BLOCK_LAYOUTS[tensor.type]
    blocks = tensor.raw.reshape(-1, layout.num_bytes)
    step = max(1, CHUNK_ELEMENTS // layout.num_elements)
    for first in range(0, len(blocks), step):
        part = blocks[first : first + step]
        yield (
            first * layout.num_elements,
            dequantize(tensor.type, part.reshape(-1), (len(part) * layout.num_elements,)),
        )


def _pack_bytes(blocks: NDArray[np.uint8], scales: NDArray[np.float16]) -> tuple[PackScheme, Parts]:
    codes = (blocks[..., 2:] ^ np.uint8(128)).reshape(blocks.shape[0], -1)
    if scales.shape[1] > 1 and bool((scales.view(np.uint16) == scales.view(np.uint16)[:, :1]).all()):
        return PackScheme("pack-quantized", 8, "channel"), _parts(codes, scales[:, :1], num_bits=8)
    return PackScheme("pack-quantized", 8), _parts(codes, scales, num_bits=8)


def _parts(codes: NDArray[np.uint8], scales: NDArray[np.float16], *, num_bits: int) -> dict[str, Part]:
    words = pack_codes(codes, num_bits).view("<u4")
    shape = np.array(codes.shape, "<i8")
    return {
        "weight_packed": Part("I32", words.shape, _bytes(words)),
        "weight_scale": Part("F16", scales.shape, _bytes(np.ascontiguousarray(scales))),
        "weight_shape": Part("I64", shape.shape, _bytes(shape)),
    }


def _five_bit_codes(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes of Q5_0 blocks [outputs, groups, 22]: low nibbles behind the word of their fifth bits."""
    codes = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")
    codes <<= np.uint8(4)
    codes[..., :16] |= blocks[..., 6:] & np.uint8(15)
    codes[..., 16:] |= blocks[..., 6:] >> np.uint8(4)
    return codes.reshape(len(blocks), -1)


def _integer_zeros(scales: NDArray[np.float16], minimums: NDArray[np.float16]) -> NDArray[np.uint8] | None:
    """The zeros z of 0 to 15 with minimum = -scale * z, rounded to float16 as `grouped_linear` does; None without."""
    steps, lows = scales.astype(np.float32), minimums.astype(np.float32)
    with np.errstate(all="ignore"):
        zeros = np.nan_to_num(np.clip(np.rint(-lows / steps), 0, 15), nan=0.0)
        is_exact = (-steps * zeros).astype(np.float16).astype(np.float32) == lows
    return zeros.astype(np.uint8) if bool(is_exact.all()) else None


def _bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    return values.reshape(-1).view(np.uint8)
