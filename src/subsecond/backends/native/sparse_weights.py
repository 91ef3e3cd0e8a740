"""Weights of half precision without their zeros: how much they take, and how they are packed piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from subsecond import _native
from subsecond.backends.native.weight_formats import LIST_FORMAT, MAX_LIST_INPUTS, SPARSE_FORMAT
from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.gguf_types import TensorType, dequantize
from subsecond.models.weights import WeightSource

PIECE_VALUES = 2**20  # in memory as half precision at once
_PANEL_OUTPUTS = 16

Halves = NDArray[np.uint16]


def sparse_form(source: WeightSource, name: str) -> tuple[str, int] | None:
    """Format and packed bytes of a weight [out, in] without its zeros, as of `choose_form`; reads all of it.

    UnsupportedError for weights that half precision cannot hold.
    """
    num_outputs, num_inputs = source.shapes[name]
    return choose_form(num_outputs, num_inputs, _pieces(source, name))


def choose_form(num_outputs: int, num_inputs: int, pieces: Iterable[tuple[int, Halves]]) -> tuple[str, int] | None:
    """Format and packed bytes of such a weight, None where leaving its zeros out saves nothing.

    `pieces` are the first output and the bits of float16 [outputs, inputs] of panels that follow each other. A list
    takes less work than a bitmap and more bytes; it is taken where these are at most half of the dense weight.
    """
    names = (LIST_FORMAT, SPARSE_FORMAT) if num_inputs <= MAX_LIST_INPUTS else (SPARSE_FORMAT,)
    sizes = dict.fromkeys(names, 0)
    for start, rows in pieces:
        for packed in names:
            sizes[packed] += _native.sparse_size(packed, num_outputs, num_inputs, rows, start)
    dense = _native.packed_size("F16", num_outputs, num_inputs)
    if LIST_FORMAT in sizes and 2 * sizes[LIST_FORMAT] <= dense:
        return LIST_FORMAT, sizes[LIST_FORMAT]
    return (SPARSE_FORMAT, sizes[SPARSE_FORMAT]) if sizes[SPARSE_FORMAT] < dense else None


def pack_sparse(source: WeightSource, name: str, packed_format: str, packed: NDArray[np.uint8]) -> None:
    """Pack a weight without its zeros into `packed`, of the size that `sparse_form` gives."""
    num_outputs, num_inputs = source.shapes[name]
    for start, rows in _pieces(source, name):
        _native.pack_sparse_into(packed_format, num_outputs, num_inputs, rows, start, packed)


def check_sparse(packed_format: str, num_outputs: int, num_inputs: int, packed: NDArray[np.uint8]) -> None:
    """FormatError unless `packed` is a weight of that shape, all of whose offsets lie within it."""
    try:
        _native.kernels.weight(packed_format, num_outputs, num_inputs, packed)
    except ValueError as error:
        raise FormatError(str(error)) from error


def _pieces(source: WeightSource, name: str) -> Iterator[tuple[int, Halves]]:
    """The bits of all outputs as half precision, whole panels at a time: the first output and [outputs, inputs]."""
    num_outputs, num_inputs = source.shapes[name]
    stored, raw = source.type_of(name), source.raw(name)
    row_bytes = raw.size // num_outputs
    step = max(PIECE_VALUES // num_inputs // _PANEL_OUTPUTS, 1) * _PANEL_OUTPUTS
    for start in range(0, num_outputs, step):
        end = min(start + step, num_outputs)
        piece = raw[start * row_bytes : end * row_bytes]
        yield start, _halves(stored, piece, (end - start, num_inputs), name)
        source.release()


def _halves(stored: TensorType, piece: NDArray[np.uint8], shape: tuple[int, int], name: str) -> Halves:
    """Bits of float16, rounded where more is stored; UnsupportedError for what half precision is too small for."""
    if stored is TensorType.F16:
        return np.require(piece.view(np.uint16).reshape(shape), requirements=["C", "A"])
    values = dequantize(stored, piece, shape)
    with np.errstate(over="ignore", invalid="ignore"):
        halves = values.astype(np.float16)
    if np.isinf(halves).any() and not np.isinf(values).any():
        raise UnsupportedError(
            f"tensor {name!r} has weights beyond 65504, for which the reading 'sparse' has no numbers"
        )
    return halves.view(np.uint16)
