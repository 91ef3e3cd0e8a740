"""Packed weights: stored blocks reordered for the kernels, from a model file or from the artifact that keeps them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from subsecond import _native
from subsecond.backends.native.sparse_weights import check_sparse, pack_sparse, sparse_form
from subsecond.backends.native.weight_formats import (
    CHANNEL_FORMATS,
    NESTED_READINGS,
    PACKED_FORMATS,
    SPARSE_FORMAT,
    SPARSE_FORMATS,
    VECTOR_FORMAT,
)
from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.artifact import Artifact
from subsecond.formats.gguf_types import dequantize, quantize_q8_0
from subsecond.models.weights import WeightSource

LAYOUT_VERSION = 1  # of native/packed_weight.h; an artifact of another layout is not used
CHUNK_FLOATS = 2**20  # weights that a thread has as float32 at once
PIECE_BYTES = 16 * 2**20  # of a source file that are in memory beside what was packed of them, at most, a thread
COPY_LIMIT_BYTES = 256 * 2**20
"""Up to this size an artifact is copied into huge pages, above it is mapped. What fits the caches of a large processor
is read up to 1.5 times as fast from huge pages (a Sapphire Rapids), and 97 MB are copied in 15 ms. From memory the two
are equally fast (765 MB: 25.2 ms a token mapped, 25.4 ms copied, on a Zen 5), and there a copy costs 0.1 to 1.5 s."""
_ALIGNMENT = 64
_log = logging.getLogger(__name__)
_PANEL_OUTPUTS = 16


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A weight [num_outputs, num_inputs] in the layout of native/packed_weight.h, or `count` of them in a row."""

    format: str
    num_outputs: int
    num_inputs: int
    data: NDArray[np.uint8]
    count: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored weight: [out, in], or [count, out, in] of experts."""
        single = (self.num_outputs, self.num_inputs)
        return single if self.count == 1 else (self.count, *single)

    def part(self, index: int) -> NDArray[np.uint8]:
        """The packed bytes of matrix `index`."""
        size = self.data.size // self.count
        return self.data[index * size : (index + 1) * size]

    def rows(self, index: int, start: int, end: int) -> NDArray[np.uint8]:
        """The packed bytes of outputs [start, end) of matrix `index`; `start` is a multiple of a panel's outputs."""
        part = self.part(index)
        panel_bytes = part.size // -(-self.num_outputs // _PANEL_OUTPUTS)
        return part[start // _PANEL_OUTPUTS * panel_bytes : -(-end // _PANEL_OUTPUTS) * panel_bytes]


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """All weights of a model, by name: matrices packed, vectors (norms, biases) as float32."""

    matrices: Mapping[str, PackedMatrix]
    vectors: Mapping[str, NDArray[np.float32]]

    @property
    def num_bytes(self) -> int:
        """Bytes that a step may read."""
        return sum(m.data.size for m in self.matrices.values()) + sum(v.nbytes for v in self.vectors.values())

    def read_as(self, reading: str) -> PackedWeights:
        """The same bytes, with that reading of all nested weights: "nested8" or "nested4"."""
        nested = {CHANNEL_FORMATS[name] for name in NESTED_READINGS}
        matrices = {
            name: replace(m, format=CHANNEL_FORMATS[reading]) if m.format in nested else m
            for name, m in self.matrices.items()
        }
        return PackedWeights(matrices, self.vectors)


@dataclass(frozen=True, slots=True)
class PackedSize:
    """The format that a matrix is packed in and its bytes."""

    format: str
    num_bytes: int


def pack_weights(
    source: WeightSource,
    formats: Mapping[str, str],
    num_threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> PackedWeights:
    """Pack weights of `source` into one allocation, each in its format; `progress` gets (bytes done, bytes in all).

    Formats and errors as of `packed_sizes`.
    """
    vectors = {n: source.dequantize(n).reshape(-1) for n, f in formats.items() if f == VECTOR_FORMAT}
    sizes = packed_sizes(source, formats)
    total = sum(_aligned(size.num_bytes) for size in sizes.values())
    memory = _native.allocate(total)
    matrices: dict[str, PackedMatrix] = {}
    offset = 0
    for name, size in sizes.items():
        *count, num_outputs, num_inputs = source.shapes[name]
        data = memory[offset : offset + size.num_bytes]
        matrices[name] = PackedMatrix(size.format, num_outputs, num_inputs, data, *count)
        offset += _aligned(size.num_bytes)

    def pack(name: str) -> int:
        _pack(source, name, matrices[name])
        return _aligned(sizes[name].num_bytes)

    done = 0
    with ThreadPoolExecutor(num_threads) as pool:
        for num_bytes in pool.map(pack, sorted(sizes, key=lambda name: -sizes[name].num_bytes)):
            done += num_bytes
            if progress:
                progress(done, total)
    return PackedWeights(matrices, vectors)


def packed_sizes(source: WeightSource, formats: Mapping[str, str]) -> dict[str, PackedSize]:
    """Format and bytes of each weight that is a matrix, in the given formats; reads those of SPARSE_FORMAT.

    Those that would not be smaller without their zeros keep their stored format. UnsupportedError when none would.
    """
    sizes = {n: _packed_size(source, n, f) for n, f in formats.items() if f != VECTOR_FORMAT}
    wanted = [name for name, packed in formats.items() if packed == SPARSE_FORMAT]
    kept = [name for name in wanted if sizes[name].format not in SPARSE_FORMATS]
    if wanted and kept == wanted:
        raise UnsupportedError(
            f"the reading 'sparse' makes none of {len(wanted)} weights smaller: it takes more than some 7 % of zeros. "
            "Leave it out, or prune the model"
        )
    if kept:
        _log.warning("%d of %d weights have too few zeros to be smaller as sparse ones", len(kept), len(wanted))
    return sizes


def read_packed_weights(artifact: Artifact) -> PackedWeights:
    """The packed weights of an artifact: copied into huge pages when small, else mapped from the file."""
    packed: NDArray[np.uint8] = artifact.packed
    if packed.size <= COPY_LIMIT_BYTES:
        packed = _native.allocate(packed.size)
        artifact.read_packed_into(packed)
    matrices: dict[str, PackedMatrix] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    for name, tensor in artifact.manifest.tensors.items():
        data = packed[tensor.offset : tensor.offset + tensor.num_bytes]
        if tensor.format == VECTOR_FORMAT:
            if tensor.num_bytes != 4 * tensor.k:
                raise FormatError(
                    f"{artifact.path}: vector {name!r} has {tensor.num_bytes} bytes for {tensor.k} values"
                )
            vectors[name] = data.view(np.float32)
            continue
        if tensor.format not in (*PACKED_FORMATS, *SPARSE_FORMATS):
            raise FormatError(f"{artifact.path}: weight {name!r} has the unknown packed format {tensor.format!r}")
        try:
            if tensor.format in SPARSE_FORMATS:
                check_sparse(tensor.format, tensor.n, tensor.k, data)
                matrices[name] = PackedMatrix(tensor.format, tensor.n, tensor.k, data)
                continue
            expected = tensor.count * _native.packed_size(tensor.format, tensor.n, tensor.k)
        except (ValueError, FormatError) as error:
            raise FormatError(f"{artifact.path}: weight {name!r}: {error}; {artifact.remedy}") from error
        if tensor.num_bytes != expected:
            raise FormatError(f"{artifact.path}: weight {name!r} has {tensor.num_bytes} bytes, which its shape forbids")
        matrices[name] = PackedMatrix(tensor.format, tensor.n, tensor.k, data, tensor.count)
    return PackedWeights(matrices, vectors)


def _pack(source: WeightSource, name: str, matrix: PackedMatrix) -> None:
    """Pack one weight piece by piece, so that the file behind it never takes as much memory as the weight.

    One that does not keep its stored blocks becomes float32 on the way.
    """
    if matrix.format in SPARSE_FORMATS:
        return pack_sparse(source, name, matrix.format, matrix.data)
    stored, raw = source.type_of(name), source.raw(name)
    num_outputs, num_inputs = matrix.num_outputs, matrix.num_inputs
    row_bytes = raw.size // (matrix.count * num_outputs)
    is_kept = matrix.format == stored.name
    num_rows = PIECE_BYTES // row_bytes if is_kept else CHUNK_FLOATS // num_inputs
    step = max(num_rows // _PANEL_OUTPUTS, 1) * _PANEL_OUTPUTS
    for index in range(matrix.count):
        rows = raw[index * num_outputs * row_bytes :]
        for start in range(0, num_outputs, step):
            end = min(start + step, num_outputs)
            piece = rows[start * row_bytes : end * row_bytes]
            if is_kept:
                _native.pack_into(matrix.format, end - start, num_inputs, piece, matrix.rows(index, start, end))
            else:
                _pack_values(dequantize(stored, piece, (end - start, num_inputs)), matrix, index, start)
            source.release()


def _pack_values(values: NDArray[np.float32], matrix: PackedMatrix, index: int, start: int) -> None:
    """Pack outputs from `start` on of matrix `index` from their values, which may be overwritten."""
    if matrix.format in CHANNEL_FORMATS.values():
        part = matrix.part(index)
        _native.quantize_into(matrix.format, matrix.num_outputs, matrix.num_inputs, values, start, part)
    else:
        packed = matrix.rows(index, start, start + len(values))
        _native.pack_into(matrix.format, len(values), matrix.num_inputs, quantize_q8_0(values), packed)


def _packed_size(source: WeightSource, name: str, wanted: str) -> PackedSize:
    *count, num_outputs, num_inputs = source.shapes[name]
    if wanted != SPARSE_FORMAT:
        return PackedSize(wanted, math.prod(count) * _native.packed_size(wanted, num_outputs, num_inputs))
    form = sparse_form(source, name)
    return PackedSize(*form) if form else _packed_size(source, name, source.type_of(name).name)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
