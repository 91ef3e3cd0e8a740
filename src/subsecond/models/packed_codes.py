"""Codes of four to eight bits side by side without gaps, as compressed-tensors packs them; knows no scales.

Code i of a row begins at bit i * bits of it, lowest bit first, across the borders of bytes and words: `pack_to_int32`
of compressed-tensors since 0.18. Earlier releases left gaps where bits do not divide 32; those have more words.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
PACKED_BITS = (4, 5, 8)
_TOGETHER = 8  # codes that fill whole bytes, whatever their bits


def pack_codes(codes: Bytes, num_bits: int) -> Bytes:
    """Codes uint8 [rows, columns] as bytes [rows, columns * num_bits / 8]; columns are a multiple of 8."""
    rows, columns = codes.shape
    if num_bits == 8:
        return codes
    parts = codes.reshape(rows, columns // _TOGETHER, _TOGETHER)
    packed = np.zeros((rows, columns // _TOGETHER, num_bits), np.uint8)
    for code, byte, shift in _overlaps(num_bits):
        packed[..., byte] |= _shifted(parts[..., code], -shift)
    return packed.reshape(rows, -1)


def unpack_codes(packed: Bytes, num_bits: int) -> Bytes:
    """The codes uint8 [rows, columns] of bytes [rows, columns * num_bits / 8]."""
    rows = packed.shape[0]
    if num_bits == 8:
        return packed
    parts = packed.reshape(rows, -1, num_bits)
    codes = np.zeros((rows, parts.shape[1], _TOGETHER), np.uint8)
    for code, byte, shift in _overlaps(num_bits):
        codes[..., code] |= _shifted(parts[..., byte], shift)
    codes &= np.uint8(2**num_bits - 1)
    return codes.reshape(rows, -1)


def _overlaps(num_bits: int) -> Iterator[tuple[int, int, int]]:
    """Code, byte, and how far right to shift the byte so that their common bits are where the code has them."""
    for code in range(_TOGETHER):
        for byte in range(num_bits):
            shift = code * num_bits - 8 * byte
            if -num_bits < shift < 8:
                yield code, byte, shift


def _shifted(values: Bytes, right: int) -> Bytes:
    return values >> np.uint8(right) if right >= 0 else values << np.uint8(-right)
