"""Quantized checkpoints, built by their published formulas, decode to what those say and become the right blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import IntQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from numpy.typing import NDArray
from safetensors.torch import save_file

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.gguf_types import TensorType, dequantize
from subsecond.formats.safetensors import Safetensors
from subsecond.models.grouped_linear import GroupedLinear
from subsecond.models.hf_quantized import WordScheme, read_scheme

OUTPUTS, INPUTS, GROUP = 24, 128, 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Floats = NDArray[np.float32]


def pack(codes: NDArray[Any], order: tuple[int, ...] = tuple(range(8))) -> NDArray[np.int32]:
    """Eight codes of the last axis to a word; nibble i is code order[i]."""
    eights = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, 8)
    words = sum(eights[..., index] << np.uint32(4 * nibble) for nibble, index in enumerate(order))
    return np.ascontiguousarray(words).view(np.int32)


def quantize_config(method: str, **fields: object) -> Mapping[str, object]:
    return {"quantization_config": {"quant_method": method, "bits": 4, "group_size": GROUP, **fields}}


def open_linear(folder: Path, content: Mapping[str, object], parts: Mapping[str, Any]) -> GroupedLinear:
    """Write parts, arrays or tensors, and open them."""
    save_file({name: torch.as_tensor(part) for name, part in parts.items()}, folder / "model.safetensors")
    scheme = read_scheme(content, folder)
    assert scheme is not None and scheme.is_quantized({name: name for name in parts})
    return scheme.linear({name: name for name in parts}, Safetensors.open_folder(folder))


def decode(linear: GroupedLinear) -> Floats:
    return dequantize(linear.type, linear.raw(), linear.shape)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def random_codes(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float16]]:
    """Codes [outputs, inputs], zeros and scales [outputs, groups]."""
    codes = rng.integers(0, 16, (OUTPUTS, INPUTS), dtype=np.uint8)
    zeros = rng.integers(1, 16, (OUTPUTS, INPUTS // GROUP), dtype=np.uint8)
    return codes, zeros, rng.uniform(0.001, 0.02, zeros.shape).astype(np.float16)


def expected(
    codes: NDArray[np.uint8], zeros: NDArray[np.uint8], scales: NDArray[Any], groups: NDArray[Any] | None = None
) -> Floats:
    groups = np.arange(INPUTS) // GROUP if groups is None else groups
    shifted = codes.astype(np.float32) - zeros.astype(np.float32)[:, groups]
    return shifted * scales.astype(np.float32)[:, groups]


def gptq_parts(
    codes: NDArray[np.uint8], zeros: NDArray[np.uint8], scales: NDArray[Any], zero_shift: int = 1
) -> dict[str, NDArray[Any]]:
    return {
        "qweight": np.ascontiguousarray(pack(codes).T),
        "qzeros": pack((zeros - zero_shift).T),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": (np.arange(INPUTS) // GROUP).astype(np.int32),
    }


def bound_of_q4_1(scales: NDArray[Any]) -> float:
    """The minimum, at most 16 scales, is rounded to float16."""
    return float(scales.max()) * 16 * 2**-11


def test_symmetric_gptq_is_exact_as_q4_0(tmp_path: Path, rng: np.random.Generator) -> None:
    codes, zeros, scales = random_codes(rng)
    zeros[:] = 8
    linear = open_linear(tmp_path, quantize_config("gptq"), gptq_parts(codes, zeros, scales))
    assert (linear.type, linear.shape) == (TensorType.Q4_0, (OUTPUTS, INPUTS))
    assert np.array_equal(decode(linear), expected(codes, zeros, scales))


@pytest.mark.parametrize(("form", "zero_shift"), [("gptq", 1), ("gptq_v2", 0)])
def test_asymmetric_gptq_is_q4_1(tmp_path: Path, rng: np.random.Generator, form: str, zero_shift: int) -> None:
    codes, zeros, scales = random_codes(rng)
    content = quantize_config("gptq", checkpoint_format=form)
    linear = open_linear(tmp_path, content, gptq_parts(codes, zeros, scales, zero_shift))
    assert linear.type is TensorType.Q4_1
    assert np.abs(decode(linear) - expected(codes, zeros, scales)).max() <= bound_of_q4_1(scales)


def test_gptq_with_inputs_out_of_order_is_decoded(tmp_path: Path, rng: np.random.Generator) -> None:
    codes, zeros, scales = random_codes(rng)
    parts = gptq_parts(codes, zeros, scales)
    parts["g_idx"] = rng.permutation(parts["g_idx"])
    linear = open_linear(tmp_path, quantize_config("gptq", desc_act=True), parts)
    assert linear.type is TensorType.F16
    wanted = expected(codes, zeros, scales, parts["g_idx"]).astype(np.float16)
    assert np.array_equal(decode(linear), wanted.astype(np.float32))


def test_one_group_for_all_inputs(tmp_path: Path, rng: np.random.Generator) -> None:
    codes, zeros, scales = random_codes(rng)
    zeros, scales = np.full_like(zeros[:, :1], 8), scales[:, :1]
    parts: dict[str, Any] = {**gptq_parts(codes, zeros, scales), "g_idx": np.zeros(INPUTS, np.int32)}
    linear = open_linear(tmp_path, quantize_config("gptq", group_size=-1), parts)
    assert linear.type is TensorType.Q4_0
    assert np.array_equal(decode(linear), expected(codes, zeros, scales, np.zeros(INPUTS, np.int64)))


def test_awq(tmp_path: Path, rng: np.random.Generator) -> None:
    codes, zeros, scales = random_codes(rng)
    parts: dict[str, Any] = {
        "qweight": pack(codes.T, AWQ_ORDER),
        "qzeros": pack(zeros.T, AWQ_ORDER),
        "scales": np.ascontiguousarray(scales.T),
    }
    linear = open_linear(tmp_path, quantize_config("awq", version="GEMM", zero_point=True), parts)
    assert (linear.type, linear.shape) == (TensorType.Q4_1, (OUTPUTS, INPUTS))
    assert np.abs(decode(linear) - expected(codes, zeros, scales)).max() <= bound_of_q4_1(scales)


@pytest.mark.parametrize(
    ("scale", "kind", "error"),
    [(2.0**-26, TensorType.F32, 0.0), (1e5, TensorType.F32, 0.0), (1 / 3, TensorType.Q4_0, 2.0**-11)],
    ids=["too small for float16", "too large", "rounded"],
)
def test_scales_that_float16_does_not_hold(
    tmp_path: Path, rng: np.random.Generator, scale: float, kind: TensorType, error: float
) -> None:
    codes, zeros, _ = random_codes(rng)
    zeros[:] = 8
    scales = np.full(zeros.shape, scale, np.float32)
    linear = open_linear(tmp_path, quantize_config("gptq"), gptq_parts(codes, zeros, scales))
    wanted = expected(codes, zeros, scales)
    assert linear.type is kind
    assert np.abs(decode(linear) - wanted).max() <= error * np.abs(wanted).max()


def test_large_weights_are_written_in_pieces(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subsecond.models.grouped_linear._CHUNK_ELEMENTS", 8 * INPUTS)
    test_awq(tmp_path, rng)
    test_symmetric_gptq_is_exact_as_q4_0(tmp_path, rng)


def compressed_config(form: str, **weights: object) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", **weights}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}}


@pytest.mark.parametrize(
    ("form", "bits"), [("pack-quantized", 4), ("pack-quantized", 5), ("pack-quantized", 8), ("int-quantized", 8)]
)
@pytest.mark.parametrize("strategy", ["group", "channel"])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_compressed_tensors(tmp_path: Path, bits: int, strategy: str, is_symmetric: bool, form: str) -> None:
    args = QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=is_symmetric,
        strategy=strategy,
        group_size=GROUP if strategy == "group" else None,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    generator = torch.Generator().manual_seed(3)
    num_groups = INPUTS // GROUP if strategy == "group" else 1
    scales = (torch.rand(OUTPUTS, num_groups, generator=generator) * 0.05 + 0.01).bfloat16()
    state = {"weight": torch.randn(OUTPUTS, INPUTS, generator=generator), "weight_scale": scales.float()}
    if not is_symmetric:
        half = 2 ** (bits - 1)
        state["weight_zero_point"] = torch.randint(-half, half, scales.shape, generator=generator).to(torch.int8)
    compressor = PackedQuantizationCompressor if form == "pack-quantized" else IntQuantizationCompressor
    parts = compressor.compress(state, scheme)
    wanted = compressor.decompress(parts, scheme)["weight"].float().numpy()
    parts["weight_scale"] = scales  # as checkpoints have it
    content = compressed_config(form, num_bits=bits, symmetric=is_symmetric, strategy=strategy)
    linear = open_linear(tmp_path, content, parts)
    plain = TensorType.F16
    kinds = {4: (TensorType.Q4_1, TensorType.Q4_0), 5: (plain, TensorType.Q5_0), 8: (plain, TensorType.Q8_0)}
    assert linear.type is kinds[bits][is_symmetric]
    error = 0.0 if is_symmetric else float(scales.max()) * 2**bits * 2**-11
    assert np.abs(decode(linear) - wanted).max() <= error


def test_words_with_gaps_are_refused(tmp_path: Path) -> None:
    scales = np.ones((OUTPUTS, INPUTS // GROUP), np.float16)
    content = compressed_config("pack-quantized", num_bits=5)
    with_gaps = np.zeros((OUTPUTS, -(-INPUTS // 6)), np.int32)  # six codes a word, as older releases have it
    with pytest.raises(UnsupportedError, match="22 words for an output are not filled by codes of 5 bits"):
        open_linear(tmp_path, content, {"weight_packed": with_gaps, "weight_scale": scales})
    parts = {
        "weight_packed": np.zeros((OUTPUTS, 25), np.int32),
        "weight_scale": np.ones((OUTPUTS, 1), np.float16),
        "weight_shape": np.array((OUTPUTS, 150), np.int64),
    }
    with pytest.raises(UnsupportedError, match=r"shape \(24, 150\) has words for \(24, 160\)"):
        open_linear(tmp_path, content, parts)


def test_groups_of_compressed_tensors_out_of_order(tmp_path: Path, rng: np.random.Generator) -> None:
    codes, zeros, scales = random_codes(rng)
    zeros[:] = 8
    groups = rng.permutation(np.arange(INPUTS, dtype=np.int32) // GROUP)
    parts: dict[str, Any] = {"weight_packed": pack(codes), "weight_scale": scales, "weight_g_idx": groups}
    content = compressed_config("pack-quantized")
    wanted = expected(codes, zeros, scales, groups).astype(np.float16).astype(np.float32)
    assert np.array_equal(decode(open_linear(tmp_path, content, parts)), wanted)
    parts["weight_g_idx"] = np.full_like(groups, -1)  # none were chosen
    linear = open_linear(tmp_path, content, parts)
    assert linear.type is TensorType.Q4_0
    assert np.array_equal(decode(linear), expected(codes, zeros, scales))


def test_groups_beyond_the_last_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    parts = gptq_parts(*random_codes(rng))
    parts["g_idx"][5] = INPUTS // GROUP
    with pytest.raises(FormatError, match="groups 0 to 4 of 4"):
        _ = open_linear(tmp_path, quantize_config("gptq"), parts).type


@pytest.mark.parametrize(
    ("part", "shape", "message"),
    [
        ("scales", (3, OUTPUTS), r"'scales' is F16 \(3, 24\)"),
        ("qzeros", (4, 4), r"'qzeros' is I32 \(4, 4\)"),
        ("g_idx", (INPUTS - 1,), r"'g_idx' is I32 \(127,\)"),
        ("qweight", (INPUTS // 8 * OUTPUTS,), "must be a matrix"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, rng: np.random.Generator, part: str, shape: tuple[int, ...], message: str
) -> None:
    parts = gptq_parts(*random_codes(rng))
    parts[part] = np.resize(parts[part], shape)
    with pytest.raises(FormatError, match=message):
        open_linear(tmp_path, quantize_config("gptq"), parts)


def test_a_missing_part_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    parts = gptq_parts(*random_codes(rng))
    del parts["qzeros"]
    with pytest.raises(FormatError, match="it needs qweight, qzeros, scales"):
        open_linear(tmp_path, quantize_config("gptq"), parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (quantize_config("gptq", bits=8), "GPTQ with 8 bits"),
        (quantize_config("gptq", bits=3), "GPTQ with 3 bits"),
        (quantize_config("gptq", checkpoint_format="marlin"), "the GPTQ format 'marlin'"),
        (quantize_config("gptq", is_marlin_format=True), "the GPTQ format marlin"),
        (quantize_config("gptq", group_size=48), "group size 48"),
        (quantize_config("gptq", dynamic={"x": {"bits": 8}}), "dynamic"),
        (quantize_config("awq", version="gemv"), "the AWQ version 'gemv'"),
        (quantize_config("awq", bits=8), "AWQ with 8 bits"),
        (quantize_config("awq", zero_point=False), "AWQ without zero points"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "the layout of MLX"),
        (quantize_config("fp8"), "its method 'fp8'"),
        (quantize_config("bitsandbytes"), "its method 'bitsandbytes'"),
        (compressed_config("float-quantized"), "format 'float-quantized'"),
        (compressed_config("pack-quantized", num_bits=3), "int of 3 bits by group"),
        (compressed_config("naive-quantized", type="float", num_bits=8), "float of 8 bits"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, content: Mapping[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{message}.*; supported are GPTQ"):
        read_scheme(content, tmp_path)


def test_checkpoints_without_quantization(tmp_path: Path) -> None:
    assert read_scheme({}, tmp_path) is None
    assert read_scheme(compressed_config("dense"), tmp_path) is None


def test_gptq_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 128, "desc_act": false}')
    scheme = read_scheme({}, tmp_path)
    assert isinstance(scheme, WordScheme)
    assert (scheme.layout, scheme.group_size, scheme.zero_shift) == ("gptq", 128, 1)


def test_groups_of_several_bits_and_formats(tmp_path: Path, rng: np.random.Generator) -> None:
    group = {"type": "int", "symmetric": True, "strategy": "group"}
    content = compressed_config("mixed-precision")
    content["quantization_config"]["config_groups"] = {
        "a": {"targets": ["x"], "weights": {**group, "num_bits": 4}, "format": "pack-quantized"},
        "b": {"targets": ["re:.*y"], "weights": {**group, "num_bits": 8}, "format": "pack-quantized"},
        "c": {"targets": ["Linear"], "weights": {**group, "num_bits": 8}, "format": "int-quantized"},
    }
    codes = rng.integers(-8, 8, (OUTPUTS, INPUTS), dtype=np.int8)
    scales = rng.uniform(0.001, 0.02, (OUTPUTS, INPUTS // GROUP)).astype(np.float16)
    shape = np.array(codes.shape, np.int64)
    wanted = codes * np.repeat(scales.astype(np.float32), GROUP, axis=1)
    eight_bits = (codes.view(np.uint8) ^ np.uint8(128)).view(np.int32)
    four_bits = pack((codes + 8).astype(np.uint8))
    for words, kind in ((eight_bits, TensorType.Q8_0), (four_bits, TensorType.Q4_0)):
        parts = {"weight_packed": words, "weight_scale": scales, "weight_shape": shape}
        linear = open_linear(tmp_path, content, parts)
        assert linear.type is kind
        assert np.array_equal(decode(linear), wanted)
    assert np.array_equal(decode(open_linear(tmp_path, content, {"weight": codes, "weight_scale": scales})), wanted)
    with pytest.raises(UnsupportedError, match="without 'weight_shape' in a checkpoint with several numbers of bits"):
        open_linear(tmp_path, content, {"weight_packed": four_bits, "weight_scale": scales})
    parts = {"weight_packed": four_bits, "weight_scale": scales, "weight_shape": shape * 3}
    with pytest.raises(FormatError, match=r"no group of config\.json gives; their bits are 4, 8"):
        open_linear(tmp_path, content, parts)
