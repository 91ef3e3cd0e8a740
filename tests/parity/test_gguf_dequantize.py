"""Dequantization equals the gguf package's bit for bit, and files written by that package are read."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from subsecond.formats import gguf_types
from subsecond.formats.gguf import GgufFile
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType, can_dequantize, dequantize, quantize_q8_0

DECODED = [tensor_type for tensor_type in TensorType if can_dequantize(tensor_type)]
IN_USE = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS F16 BF16 F32 MXFP4 TQ2_0"


def test_every_type_in_use_is_decoded() -> None:
    assert {tensor_type.name for tensor_type in DECODED} >= set(IN_USE.split())


@pytest.mark.parametrize("tensor_type", DECODED, ids=lambda each: each.name)
@pytest.mark.parametrize("chunk_elements", [1 << 20, 512])
def test_random_blocks(tensor_type: TensorType, chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random bytes hold every code and every kind of scale: sub-normal, infinite and nan ones too."""
    monkeypatch.setattr(gguf_types, "CHUNK_ELEMENTS", chunk_elements)
    layout = BLOCK_LAYOUTS[tensor_type]
    rows, blocks_in_row = 7, 256 // layout.num_elements * 3
    raw = np.random.default_rng(tensor_type).integers(0, 256, rows * blocks_in_row * layout.num_bytes, dtype=np.uint8)
    ours = dequantize(tensor_type, raw, (rows, blocks_in_row * layout.num_elements))
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(raw.reshape(rows, -1), gguf.GGMLQuantizationType(tensor_type))
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    numbers = ~np.isnan(ours)
    assert numbers.mean() > 0.5
    np.testing.assert_array_equal(ours[numbers].view(np.uint32), theirs[numbers].view(np.uint32))


@pytest.mark.parametrize("tensor_type", TensorType, ids=lambda each: each.name)
def test_block_sizes(tensor_type: TensorType) -> None:
    layout = BLOCK_LAYOUTS[tensor_type]
    num_elements, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor_type.name]]
    assert gguf.GGMLQuantizationType[tensor_type.name].value == tensor_type
    if tensor_type is TensorType.Q8_1:
        num_bytes = 36  # ggml's block_q8_1 holds two float16; the package counts them as float32
    assert (layout.num_elements, layout.num_bytes) == (num_elements, num_bytes)


def test_files_of_the_package_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((6, 64)).astype(np.float32)
    blocks = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
    path = tmp_path / "model.gguf"
    out = gguf.GGUFWriter(path, "llama")
    out.add_uint32("answer", 42)
    out.add_token_list(["a", "é", "<|x|>"])
    out.add_token_types([1, 1, 3])
    out.add_tensor("plain", matrix)
    out.add_tensor("quantized", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    file = GgufFile.open(path)
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["answer"] == 42
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "é", "<|x|>"]
    assert file.metadata["tokenizer.ggml.token_type"] == [1, 1, 3]
    assert file.tensors["plain"].shape == file.tensors["quantized"].shape == (6, 64)
    np.testing.assert_array_equal(dequantize(TensorType.F32, file.raw("plain"), (6, 64)), matrix)
    assert file.raw("quantized").tobytes() == blocks.tobytes()


def test_files_that_the_package_split_are_read(tmp_path: Path) -> None:
    matrices = {f"matrix{index}": np.full((2, 32), index, np.float32) for index in range(5)}
    out = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    out.add_uint32("answer", 42)
    for name, matrix in matrices.items():
        out.add_tensor(name, matrix)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    paths = sorted(tmp_path.iterdir())
    for path in paths:
        file = GgufFile.open(path)
        assert file.paths == tuple(paths)
        assert (file.metadata["answer"], set(file.tensors)) == (42, set(matrices))
        for name, matrix in matrices.items():
            np.testing.assert_array_equal(dequantize(TensorType.F32, file.raw(name), (2, 32)), matrix)
    assert len(paths) == 3


def test_q8_0_is_made_as_the_gguf_package_makes_it() -> None:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((40, 96), dtype=np.float32) * rng.uniform(1e-9, 100, (40, 1)).astype(np.float32)
    values[3] = 0
    values[4, :32] = np.arange(32) * 2 + 1  # halves between codes
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(quantize_q8_0(values), expected.reshape(-1))
    values[5, 7], values[6, 8] = np.nan, np.inf
    decoded = dequantize(TensorType.Q8_0, quantize_q8_0(values), values.shape)
    assert np.isnan(decoded[5, :32]).all()
    assert not np.isfinite(decoded[6, :32]).any()
    assert np.isfinite(decoded[[0, 1, 2, 3, 4]]).all()
