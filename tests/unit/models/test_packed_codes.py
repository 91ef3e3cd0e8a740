"""Packed codes are those of a plain loop over bits, and come back."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond.models.packed_codes import pack_codes, unpack_codes


@pytest.mark.parametrize("num_bits", [4, 5, 6, 7, 8])
def test_code_i_begins_at_bit_i_times_bits(num_bits: int) -> None:
    codes = np.random.default_rng(num_bits).integers(0, 2**num_bits, (3, 64), np.uint8)
    packed = pack_codes(codes, num_bits)
    assert packed.shape == (3, 8 * num_bits)
    for row, stored in zip(codes, packed, strict=True):
        bits = sum(int(code) << (index * num_bits) for index, code in enumerate(row))
        assert stored.tobytes() == bits.to_bytes(8 * num_bits, "little")
    assert np.array_equal(unpack_codes(packed, num_bits), codes)
