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
COPY_LIMIT_BYTES = 256 * 2**20  # below this, huge pages beat a mapping: they raise cache-resident bandwidth
_ALIGNMENT = 64


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
    packed = packed_sizes(source, names)
    formats = {name: kind for name, (kind, _) in packed.items()}
    sizes = {name: size for name, (_, size) in packed.items()}
    total = sum(_aligned(size) for size in sizes.values())
    memory = _native.allocate(total)
    matrices: dict[str, PackedMatrix] = {}
    offset = 0
    for name, size in sizes.items():
        *count, num_outputs, num_inputs = source.shapes[name]
        data = memory[offset : offset + size]
        matrices[name] = PackedMatrix(formats[name], num_outputs, num_inputs, data, *count)
        offset += _aligned(size)

    def pack(part: tuple[str, int]) -> int:
        name, index = part
        matrix, stored = matrices[name], source.raw(name)
        stored_bytes = stored.size // matrix.count
        stored = stored[index * stored_bytes : (index + 1) * stored_bytes]
        _native.pack_into(matrix.format, matrix.num_outputs, matrix.num_inputs, stored, matrix.part(index))
        is_last = index == matrix.count - 1
        return matrix.part(index).size + (_aligned(matrix.data.size) - matrix.data.size if is_last else 0)

    done = 0
    parts = [(name, index) for name, matrix in matrices.items() for index in range(matrix.count)]
    with ThreadPoolExecutor(num_threads) as pool:
        for size in pool.map(pack, sorted(parts, key=lambda part: -sizes[part[0]])):
            done += size
            if progress:
                progress(done, total)
    return PackedWeights(matrices, vectors)


def packed_sizes(source: WeightSource, names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Packed format and bytes of each of the named weights that is a matrix."""
    formats = {name: _packed_format(source, name) for name in names if len(source.shapes[name]) > 1}
    return {name: (kind, _packed_size(kind, source.shapes[name])) for name, kind in formats.items()}


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
