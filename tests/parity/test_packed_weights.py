"""Weights of a model file, packed and kept in an artifact: matrices, vectors and the matrices of experts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond import _native
from subsecond.backends.native.weights import PackedWeights, pack_weights, read_packed_weights
from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.artifact import Artifact, ArtifactWriter
from subsecond.formats.artifact_manifest import SourceFile
from subsecond.formats.gguf_types import TensorType
from tests.parity.kernel_cases import I16_ISAS

SHAPES: Mapping[str, tuple[int, ...]] = {"experts": (3, 20, 64), "one": (1, 4, 32), "matrix": (17, 96), "norm": (7,)}

FORMATS = {name: "vector" if len(shape) == 1 else "Q8_0" for name, shape in SHAPES.items()}


class RandomSource:
    """Q8_0 matrices and float32 vectors; `values` is what they decode to."""

    shapes = SHAPES

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._stored: dict[str, NDArray[np.uint8]] = {}
        self.num_releases = 0
        self.values: dict[str, NDArray[np.float32]] = {}
        for name, shape in SHAPES.items():
            plain = rng.standard_normal(shape, dtype=np.float32)
            stored = gguf.quants.quantize(plain, gguf.GGMLQuantizationType[self.type_of(name).name])
            self._stored[name] = np.ascontiguousarray(stored).view(np.uint8).reshape(-1)
            self.values[name] = plain
            if len(shape) > 1:
                self.values[name] = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q8_0).reshape(shape)

    def type_of(self, name: str) -> TensorType:
        return TensorType.F32 if len(SHAPES[name]) == 1 else TensorType.Q8_0

    def raw(self, name: str) -> NDArray[np.uint8]:
        return self._stored[name]

    def dequantize(self, name: str) -> NDArray[np.float32]:
        return self.values[name]

    def release(self) -> None:
        self.num_releases += 1


def check(weights: PackedWeights, source: RandomSource) -> None:
    for name, matrix in weights.matrices.items():
        *count, num_outputs, num_inputs = SHAPES[name]
        assert matrix.count == (count or [1])[0]
        assert matrix.shape == (SHAPES[name] if matrix.count > 1 else (num_outputs, num_inputs))
        rows = np.empty((num_outputs, num_inputs), np.float32)
        for index, expected in enumerate(source.values[name].reshape(matrix.count, num_outputs, num_inputs)):
            handle = _native.kernels.weight("Q8_0", num_outputs, num_inputs, matrix.part(index))
            _native.kernels.unpack(I16_ISAS[0], handle, rows)
            np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(weights.vectors["norm"], source.values["norm"])
    assert set(weights.matrices) | set(weights.vectors) == set(SHAPES)


def write(folder: Path, weights: PackedWeights, *, count: int = 3) -> Artifact:
    about = SourceFile("model.gguf", "0" * 64, 1, 1)
    with ArtifactWriter(folder, model={}, source=about, shapes=SHAPES, packing={}) as writer:
        for name, m in weights.matrices.items():
            told = count if m.count > 1 else 1
            writer.add_tensor(name, m.data, packed_format="Q8_0", n=m.num_outputs, k=m.num_inputs, count=told)
        for name, vector in weights.vectors.items():
            writer.add_tensor(name, vector.view(np.uint8), packed_format="vector", n=1, k=vector.size)
    return Artifact.open(folder)


def test_packed_from_the_file_and_read_from_the_artifact(tmp_path: Path) -> None:
    source, steps = RandomSource(), list[tuple[int, int]]()
    weights = pack_weights(source, FORMATS, 2, lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1]
    check(weights, source)
    check(read_packed_weights(write(tmp_path, weights)), source)


@pytest.mark.parametrize("chunk_floats", [1, 2**20])
def test_channel_formats_are_made_of_the_values_whatever_the_chunks(
    chunk_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subsecond.backends.native.weights.CHUNK_FLOATS", chunk_floats)
    source = RandomSource()
    values = source.values["matrix"]
    for name in ("INT8", "INT4", "NESTED8"):
        packed = pack_weights(source, {"matrix": name}, 1).matrices["matrix"]
        expected = np.zeros(_native.packed_size(name, *values.shape), np.uint8)
        _native.quantize_into(name, values.shape[0], values.shape[1], values.copy(), 0, expected)
        np.testing.assert_array_equal(packed.data, expected)


class PrunedSource:
    """Half precision in every other weight of "half", few of "few", everywhere in "full"; `stored` is their type."""

    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({"half": (40, 100), "few": (20, 576), "full": (16, 64)})

    def __init__(self, stored: TensorType) -> None:
        rng = np.random.default_rng(2)
        self._type = stored
        self.too_large = 0.0  # instead of the first weight
        self.values = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in self.shapes.items()}
        self.values["half"][:, ::2] = 0
        self.values["few"][rng.random((20, 576)) < 0.9] = 0

    def type_of(self, _name: str) -> TensorType:
        return self._type

    def raw(self, name: str) -> NDArray[np.uint8]:
        stored = self.values[name].astype(np.float16 if self._type is TensorType.F16 else np.float32)
        if self.too_large:
            stored[0, 0] = self.too_large
        return stored.reshape(-1).view(np.uint8)

    def dequantize(self, name: str) -> NDArray[np.float32]:
        return self.values[name].astype(np.float32)

    def release(self) -> None:
        pass


def unpacked(weights: PackedWeights, name: str) -> NDArray[np.float32]:
    matrix = weights.matrices[name]
    rows = np.empty(matrix.shape, np.float32)
    handle = _native.kernels.weight(matrix.format, matrix.num_outputs, matrix.num_inputs, matrix.data)
    _native.kernels.unpack(I16_ISAS[0], handle, rows)
    return rows


@pytest.mark.parametrize("piece_values", [1, 2**20])
@pytest.mark.parametrize("stored", [TensorType.F16, TensorType.F32])
def test_zeros_are_left_out_where_that_is_smaller(
    stored: TensorType,
    piece_values: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("subsecond.backends.native.sparse_weights.PIECE_VALUES", piece_values)
    source = PrunedSource(stored)
    weights = pack_weights(source, dict.fromkeys(source.shapes, "F16_SPARSE"), 2)
    found = {name: m.format for name, m in weights.matrices.items()}
    assert found == {"half": "F16_SPARSE", "few": "F16_LIST", "full": stored.name}
    assert "1 of 3 weights have too few zeros" in caplog.text
    about = SourceFile("model.gguf", "0" * 64, 1, 1)
    with ArtifactWriter(tmp_path, model={}, source=about, shapes=source.shapes, packing={}) as writer:
        for name, m in weights.matrices.items():
            writer.add_tensor(name, m.data, packed_format=m.format, n=m.num_outputs, k=m.num_inputs)
    for packed in (weights, read_packed_weights(Artifact.open(tmp_path))):
        for name, values in source.values.items():
            np.testing.assert_array_equal(unpacked(packed, name), values)
    place = tmp_path / "subsecond" / "packed.bin"
    for name in ("half", "few"):
        content = bytearray(place.read_bytes())
        content[Artifact.open(tmp_path).manifest.tensors[name].offset] ^= 1
        place.write_bytes(content)
        with pytest.raises(FormatError, match=f"weight '{name}': offsets and contents of the sparse weight do not fit"):
            read_packed_weights(Artifact.open(tmp_path))
        content[Artifact.open(tmp_path).manifest.tensors[name].offset] ^= 1
        place.write_bytes(content)


def test_weights_without_zeros_are_not_made_sparse() -> None:
    with pytest.raises(UnsupportedError, match="makes none of 1 weights smaller"):
        pack_weights(PrunedSource(TensorType.F16), {"full": "F16_SPARSE"}, 1)
    source = PrunedSource(TensorType.F32)
    source.too_large = 1e6
    with pytest.raises(UnsupportedError, match="'half' has weights beyond 65504"):
        pack_weights(source, {"half": "F16_SPARSE"}, 1)


def test_packed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, source = pack_weights(RandomSource(), FORMATS, 1), RandomSource()
    monkeypatch.setattr("subsecond.backends.native.weights.PIECE_BYTES", 1)  # a panel a piece
    for name, matrix in pack_weights(source, FORMATS, 2).matrices.items():
        np.testing.assert_array_equal(matrix.data, whole.matrices[name].data)
    assert source.num_releases == 3 * 2 + 1 + 2


def test_another_number_of_experts_than_the_bytes_say_is_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path, pack_weights(RandomSource(), FORMATS, 1), count=4)
    with pytest.raises(FormatError, match="experts"):
        read_packed_weights(artifact)
