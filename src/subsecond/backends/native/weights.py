"""Packed weights: stored blocks reordered for the kernels, from a model file or from the artifact that keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subsecond import _native
from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.artifact import Artifact
from subsecond.models.weights import WeightSource

LAYOUT_VERSION = 1  # of native/packed_weight.h; an artifact of another layout is not used
VECTOR_FORMAT = "vector"
_TILE_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
_SUPER_BLOCK_FORMATS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
PACKED_FORMATS = ("F32", "F16", "BF16", *_TILE_FORMATS, *_SUPER_BLOCK_FORMATS)
PIECE_BYTES = 16 * 2**20  # of a source file that are in memory beside what was packed of them, at most, a thread
COPY_LIMIT_BYTES = 256 * 2**20
"""Up to this size an artifact is copied into huge pages, above it is mapped. What fits the caches of a large processor
is read up to 1.5 times as fast from huge pages (a Sapphire Rapids), and 97 MB are copied in 15 ms. From memory the two
are equally fast (765 MB: 25.2 ms a token mapped, 25.4 ms copied, on a Zen 5), and there a copy costs 0.1 to 1.5 s."""
_ALIGNMENT = 64
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


def pack_weights(
    source: WeightSource, names: Iterable[str], num_threads: int, progress: Callable[[int, int], None] | None = None
) -> PackedWeights:
    """Pack the named weights of `source` into one allocation; `progress` gets (bytes done, bytes in all)."""
    names = list(names)
    vectors = {n: source.dequantize(n).reshape(-1) for n in names if len(source.shapes[n]) == 1}
    formats = {n: _packed_format(source, n) for n in names if n not in vectors}
    sizes = {n: _packed_size(f, source.shapes[n]) for n, f in formats.items()}
    total = sum(_aligned(size) for size in sizes.values())
    memory = _native.allocate(total)
    matrices: dict[str, PackedMatrix] = {}
    offset = 0
    for name, size in sizes.items():
        *count, num_outputs, num_inputs = source.shapes[name]
        data = memory[offset : offset + size]
        matrices[name] = PackedMatrix(formats[name], num_outputs, num_inputs, data, *count)
        offset += _aligned(size)

    def pack(name: str) -> int:
        _pack(source, name, matrices[name])
        return _aligned(sizes[name])

    done = 0
    with ThreadPoolExecutor(num_threads) as pool:
        for size in pool.map(pack, sorted(sizes, key=lambda name: -sizes[name])):
            done += size
            if progress:
                progress(done, total)
    return PackedWeights(matrices, vectors)


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
        if tensor.format not in PACKED_FORMATS:
            raise FormatError(f"{artifact.path}: weight {name!r} has the unknown packed format {tensor.format!r}")
        if tensor.num_bytes != tensor.count * _native.packed_size(tensor.format, tensor.n, tensor.k):
            raise FormatError(f"{artifact.path}: weight {name!r} has {tensor.num_bytes} bytes, which its shape forbids")
        matrices[name] = PackedMatrix(tensor.format, tensor.n, tensor.k, data, tensor.count)
    return PackedWeights(matrices, vectors)


def _pack(source: WeightSource, name: str, matrix: PackedMatrix) -> None:
    """Pack one weight piece by piece, so that the file behind it never takes as much memory as the weight."""
    stored = source.raw(name)
    row_bytes = stored.size // (matrix.count * matrix.num_outputs)
    step = max(PIECE_BYTES // row_bytes // _PANEL_OUTPUTS, 1) * _PANEL_OUTPUTS
    for index in range(matrix.count):
        rows = stored[index * matrix.num_outputs * row_bytes :]
        for start in range(0, matrix.num_outputs, step):
            end = min(start + step, matrix.num_outputs)
            piece, packed = rows[start * row_bytes : end * row_bytes], matrix.rows(index, start, end)
            _native.pack_into(matrix.format, end - start, matrix.num_inputs, piece, packed)
            source.release()


def _packed_size(stored: str, shape: tuple[int, ...]) -> int:
    *count, num_outputs, num_inputs = shape
    return math.prod(count) * _native.packed_size(stored, num_outputs, num_inputs)


def _packed_format(source: WeightSource, name: str) -> str:
    stored = source.type_of(name).name
    if stored not in PACKED_FORMATS:
        raise UnsupportedError(
            f"tensor {name!r} is stored as {stored}; the native kernels read {', '.join(PACKED_FORMATS)}. "
            "Use a file of another quantization, or the torch backend"
        )
    return stored


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
