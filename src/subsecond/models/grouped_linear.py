"""A weight of integers with a scale and a zero for each group of inputs, given as blocks that kernels know.

Which block type: Q4_0, Q5_0 or Q8_0 for four, five or eight bits around 8, 16 or 128, exact up to the rounding of the
scale to float16 (none for scales that are stored as float16); Q4_1 for four bits around other zeros, where the minimum
-scale * zero is rounded to float16 too. Where a block cannot hold the weight, because its inputs are grouped out of
order, its groups are no multiple of 32 inputs, or five or eight bits have another zero, it is decoded to float16; and
to float32 where float16 would lose more than its usual rounding, because scales are too small or too large.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_BLOCK = 32
_CHUNK_ELEMENTS = 1 << 20
_HALF = np.finfo(np.float16)
_CENTRED = {4: TensorType.Q4_0, 5: TensorType.Q5_0, 8: TensorType.Q8_0}


class GroupedLinear:
    """weight[n, k] = scales[n, group of k] * (code[n, k] - zero[n, group of k]), read when asked for.

    shape        (outputs n, inputs k); outputs are read in multiples of 8
    num_bits     of a code, 4, 5 or 8
    group_size   inputs of a group, where they are grouped in order
    read_codes   codes uint8 [end - start, inputs] of the outputs [start, end)
    read_scales  float32 [outputs, groups]
    read_zeros   float32 [outputs, groups]; None when all are half of what the bits can count
    read_groups  the group of every input; None when they are grouped in order
    """

    def __init__(
        self,
        shape: tuple[int, int],
        num_bits: int,
        group_size: int,
        read_codes: Callable[[int, int], Codes],
        read_scales: Callable[[], Floats],
        read_zeros: Callable[[], Floats] | None = None,
        read_groups: Callable[[], NDArray[np.int64]] | None = None,
    ) -> None:
        self.shape = shape
        self._num_bits = num_bits
        self._group_size = group_size
        self._codes = read_codes
        self._scales = read_scales
        self._zeros = read_zeros
        self._groups = read_groups

    @cached_property
    def type(self) -> TensorType:
        """The block type that holds the weight; reads scales and zeros."""
        inputs = self.shape[1]
        has_blocks = inputs % _BLOCK == 0 and (self._group_size % _BLOCK == 0 or self._group_size >= inputs)
        if not _fits_half(self._scales(), 2**self._num_bits):
            return TensorType.F32
        if not has_blocks or self._order() is not None:
            return TensorType.F16
        is_centred = self._zeros is None or bool((self._zeros() == 2 ** (self._num_bits - 1)).all())
        if is_centred:
            return _CENTRED[self._num_bits]
        return TensorType.Q4_1 if self._num_bits == 4 else TensorType.F16

    def raw(self) -> NDArray[np.uint8]:
        """The weight in its type, row after row."""
        outputs, inputs = self.shape
        layout = BLOCK_LAYOUTS[self.type]
        rows = np.empty((outputs, inputs // layout.num_elements * layout.num_bytes), np.uint8)
        scales, zeros, order = self._scales(), self._zeros() if self._zeros else None, self._order()
        step = max(8, _CHUNK_ELEMENTS // inputs // 8 * 8)
        with np.errstate(all="ignore"):  # damaged scales may be inf or nan: the values follow, without a warning
            for start in range(0, outputs, step):
                chunk = slice(start, min(start + step, outputs))
                codes = self._codes(chunk.start, chunk.stop)
                chosen = None if zeros is None else zeros[chunk]
                if self.type in (TensorType.F16, TensorType.F32):
                    rows[chunk] = self._dense(codes, scales[chunk], chosen, order)
                else:
                    rows[chunk] = self._blocks(codes, scales[chunk], chosen)
        return rows.reshape(-1)

    def _dense(self, codes: Codes, scales: Floats, zeros: Floats | None, order: NDArray[np.int64] | None) -> Codes:
        groups = np.arange(self.shape[1]) // self._group_size if order is None else order
        shifted = codes.astype(np.float32) - (2 ** (self._num_bits - 1) if zeros is None else zeros[:, groups])
        values = scales[:, groups] * shifted
        return np.ascontiguousarray(values.astype("<f2" if self.type is TensorType.F16 else "<f4")).view(np.uint8)

    def _blocks(self, codes: Codes, scales: Floats, zeros: Floats | None) -> Codes:
        outputs, inputs = codes.shape
        codes = codes.reshape(outputs, inputs // _BLOCK, _BLOCK)
        parts = [self._per_block(scales)]
        if self.type is TensorType.Q4_1:
            assert zeros is not None
            parts.append(self._per_block(-scales * zeros))
        if self.type is TensorType.Q8_0:
            parts.append(codes ^ np.uint8(128))  # as two's complement, that takes 128 away
        else:
            if self.type is TensorType.Q5_0:
                parts.append(np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little"))
            half, low = _BLOCK // 2, codes & np.uint8(15)
            parts.append(low[..., :half] | (low[..., half:] << np.uint8(4)))
        return np.concatenate(parts, axis=-1).reshape(outputs, -1)

    def _per_block(self, values: Floats) -> Codes:
        """The numbers of the groups as float16 bytes [outputs, blocks, 2]."""
        blocks = np.arange(self.shape[1] // _BLOCK) * _BLOCK // self._group_size
        return values[:, blocks].astype("<f2")[..., None].view(np.uint8)

    def _order(self) -> NDArray[np.int64] | None:
        """The group of every input, None when they are in order."""
        if self._groups is None:
            return None
        groups = self._groups()
        num_groups = self._scales().shape[1]
        if groups.size and (groups.min() < 0 or groups.max() >= num_groups):
            raise FormatError(f"inputs of a weight are in groups {groups.min()} to {groups.max()} of {num_groups}")
        is_in_order = np.array_equal(groups, np.arange(self.shape[1]) // self._group_size)
        return None if is_in_order else groups


def _fits_half(scales: Floats, largest_code: int) -> bool:
    """Whether float16 holds the scales, and their products with codes, with no more than its usual rounding."""
    sizes = np.abs(scales)
    if not np.isfinite(sizes).all() or sizes.max(initial=0) * largest_code > _HALF.max:
        return False
    is_exact = sizes.astype(np.float16).astype(np.float32) == sizes
    return bool((is_exact | (sizes >= _HALF.smallest_normal)).all())
