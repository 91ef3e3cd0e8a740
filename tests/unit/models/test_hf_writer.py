"""A written folder reads back as what was put, whatever the source; unfinished ones leave nothing; others read it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.gguf_types import TensorType
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.config import ModelConfig
from subsecond.models.hf_writer import CheckpointWriter
from subsecond.models.row_order import has_rotated_rows, reorder_rows
from subsecond.models.weights import StoredTensor
from tests.unit.reference_logits import logits_of
from tests.unit.tiny_gguf import CHAT_TEMPLATE, SMALL, TypeRule, all_of, mixed, stored, tensors_of, write_gguf

TEXT = "hello the world, he"


def copy(source: Checkpoint, folder: Path, **options: Any) -> Checkpoint:
    """Write all weights of a model as they are."""
    with CheckpointWriter(folder, source, **options) as sink:
        for name, shape in source.shapes.items():
            sink.put(name, StoredTensor(source.weights.type_of(name), shape, source.weights.raw(name)))
    return open_checkpoint(folder)


def open_small(folder: Path, rule: TypeRule = mixed, *, is_tied: bool = True, **changes: Any) -> Checkpoint:
    config = replace(SMALL, **changes)
    return open_checkpoint(write_gguf(folder / "small.gguf", config, tensors_of(config, rule, is_tied=is_tied)))


def assert_equal_weights(found: Checkpoint, wanted: Mapping[str, StoredTensor], config: ModelConfig) -> None:
    assert dict(found.shapes) == {name: tensor.shape for name, tensor in wanted.items()}
    for name, tensor in wanted.items():
        if has_rotated_rows(name):
            tensor = reorder_rows(tensor, config, "half")
        assert found.weights.type_of(name) is tensor.type, name
        assert np.array_equal(found.weights.raw(name), tensor.raw), name


@pytest.mark.parametrize("type_name", ["Q4_0", "Q5_0", "Q8_0", "F16", "BF16", "F32"])
def test_every_type_reads_back_bit_for_bit(tmp_path: Path, type_name: str) -> None:
    source = open_small(tmp_path, all_of(type_name), is_tied=False)
    found = copy(source, tmp_path / "out")
    assert_equal_weights(found, tensors_of(SMALL, all_of(type_name), is_tied=False), SMALL)
    assert replace(found.config, name=SMALL.name, rope_pairing="interleaved") == replace(
        source.config, rope_pairing="interleaved"
    )


def test_a_model_of_several_types_reads_back_bit_for_bit(tmp_path: Path) -> None:
    found = copy(open_small(tmp_path), tmp_path / "out")
    assert_equal_weights(found, tensors_of(SMALL, mixed), SMALL)
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    bits = {group["weights"]["num_bits"]: group["targets"] for group in section["config_groups"].values()}
    assert set(bits) == {4, 8}
    assert "model.layers.1.mlp.down_proj" in bits[8] and "model.layers.0.self_attn.q_proj" in bits[4]
    assert section["ignore"] == ["lm_head", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"]


def test_several_files_hold_the_same(tmp_path: Path) -> None:
    found = copy(open_small(tmp_path), tmp_path / "out", max_file_bytes=20_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    assert_equal_weights(found, tensors_of(SMALL, mixed), SMALL)


def test_the_same_logits_in_another_row_order(tmp_path: Path) -> None:
    source = open_small(tmp_path, all_of("F32"))
    found = copy(source, tmp_path / "out")
    ids = source.tokenizer.encode(TEXT)
    assert np.abs(logits_of(found, ids) - logits_of(source, ids)).max() < 1e-5


def five_bits(name: str) -> str:
    """Layers of Q5_0; transformers reads no quantized tables."""
    return "Q5_0" if name.startswith("blk.") else "F32"


def test_an_export_has_bits_that_every_engine_reads(tmp_path: Path) -> None:
    source = open_small(tmp_path, five_bits)
    found = copy(source, tmp_path / "out", has_plain_tables=True)
    assert found.weights.type_of("blk.0.ffn_up.weight") is TensorType.Q8_0
    wanted = source.weights.dequantize("blk.0.ffn_up.weight")
    assert np.array_equal(found.weights.dequantize("blk.0.ffn_up.weight"), wanted)


@pytest.mark.parametrize(("family", "rule"), [("llama", mixed), ("qwen2", mixed), ("llama", five_bits)])
@pytest.mark.parametrize("is_tied", [True, False])
def test_transformers_computes_the_same(tmp_path: Path, family: str, rule: TypeRule, is_tied: bool) -> None:
    pairing = "interleaved" if family == "llama" else "half"
    source = open_small(tmp_path, rule, is_tied=is_tied, family=family, rope_pairing=pairing)
    found = copy(source, tmp_path / "out")
    ids = source.tokenizer.encode(TEXT)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].float().numpy()
    ours = logits_of(found, ids)
    assert np.abs(theirs - ours).max() < 2e-3 * np.abs(ours).max()


def test_transformers_reads_the_tokenizer(tmp_path: Path) -> None:
    source = open_small(tmp_path)
    found = copy(source, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (TEXT, "é ünïcode  \n\t two", "a<|start|>b<tool>c"):
        ids = source.tokenizer.encode(text, allow_special=True)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert found.tokenizer.encode(text, allow_special=True) == ids
        assert theirs.decode(ids) == text
    messages = [{"role": "user", "content": "hello"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == "<|start|>user\nhello<|end|>\n"
    assert found.chat_template_source == CHAT_TEMPLATE
    assert (found.tokenizer.bos_id, found.tokenizer.eos_ids) == (source.tokenizer.bos_id, source.tokenizer.eos_ids)


def test_a_minimum_that_is_a_multiple_of_the_scale_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_small(tmp_path, is_tied=False)
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 256, (SMALL.width * SMALL.ff_width // 32, 20), np.uint8)
    scales = rng.uniform(0.01, 0.02, len(blocks)).astype(np.float16)
    zeros = rng.integers(0, 16, len(blocks)).astype(np.float32)
    blocks[:, :2] = scales[:, None].view(np.uint8)
    blocks[:, 2:4] = (-scales.astype(np.float32) * zeros).astype(np.float16)[:, None].view(np.uint8)
    exact = StoredTensor(TensorType.Q4_1, (SMALL.ff_width, SMALL.width), blocks.reshape(-1))
    free = stored((SMALL.ff_width, SMALL.width), "Q4_1", rng)
    with caplog.at_level(logging.INFO), CheckpointWriter(tmp_path / "out", source) as sink:
        for name, tensor in tensors_of(SMALL, mixed, is_tied=False).items():
            sink.put(name, {"blk.0.ffn_up.weight": exact, "blk.1.ffn_up.weight": free}.get(name, tensor))
    assert "1 weights of type Q4_1 are decoded" in caplog.text
    weights = open_checkpoint(tmp_path / "out").weights
    assert weights.type_of("blk.0.ffn_up.weight") is TensorType.Q4_1
    assert np.array_equal(weights.dequantize("blk.0.ffn_up.weight"), exact.dequantize())
    assert weights.type_of("blk.1.ffn_up.weight") is TensorType.F16
    assert np.array_equal(weights.dequantize("blk.1.ffn_up.weight"), free.dequantize().astype(np.float16))


def test_codes_that_fit_a_byte_stay_exact(tmp_path: Path) -> None:
    source = open_small(tmp_path)
    rng = np.random.default_rng(8)
    blocks = rng.integers(0, 256, (SMALL.width * SMALL.ff_width // 32, 18), np.uint8)
    blocks[:, :2] = rng.uniform(0.01, 0.02, len(blocks)).astype(np.float16)[:, None].view(np.uint8)
    table = StoredTensor(TensorType.IQ4_NL, (SMALL.ff_width, SMALL.width), blocks.reshape(-1))
    with CheckpointWriter(tmp_path / "out", source) as sink:
        for name, tensor in tensors_of(SMALL, mixed).items():
            sink.put(name, table if name == "blk.0.ffn_up.weight" else tensor)
    weights = open_checkpoint(tmp_path / "out").weights
    assert weights.type_of("blk.0.ffn_up.weight") is TensorType.Q8_0
    assert np.array_equal(weights.dequantize("blk.0.ffn_up.weight"), table.dequantize())


def test_one_scale_for_a_row_becomes_a_channel(tmp_path: Path) -> None:
    source = open_small(tmp_path)
    tensors = tensors_of(SMALL, all_of("Q8_0"))
    blocks = tensors["blk.0.ffn_up.weight"].raw.reshape(SMALL.ff_width, -1, 34).copy()
    blocks[:, 1:, :2] = blocks[:, :1, :2]
    tensors["blk.0.ffn_up.weight"] = replace(tensors["blk.0.ffn_up.weight"], raw=blocks.reshape(-1))
    with CheckpointWriter(tmp_path / "out", source) as sink:
        for name, tensor in tensors.items():
            sink.put(name, tensor)
    assert_equal_weights(open_checkpoint(tmp_path / "out"), tensors, SMALL)
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert [g["targets"] for g in groups.values() if g["weights"]["strategy"] == "channel"] == [
        ["model.layers.0.mlp.up_proj"]
    ]


def test_int8_linears_are_one_scale_an_output(tmp_path: Path) -> None:
    source = open_small(tmp_path, all_of("F32"), is_tied=False)
    found = copy(source, tmp_path / "out", has_int8_linears=True, has_plain_tables=True)
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = section["config_groups"].values()
    assert (section["format"], group["targets"], section["ignore"]) == ("int-quantized", ["Linear"], ["lm_head"])
    assert group["input_activations"]["strategy"] == "token" and group["input_activations"]["dynamic"]
    wanted = source.weights.dequantize("blk.1.ffn_down.weight")
    steps = np.abs(wanted).max(axis=1, keepdims=True) / 127
    bound = (0.5 + 127 * 2**-11) * steps  # codes are rounded, and the scale to float16 where it is read
    assert (np.abs(found.weights.dequantize("blk.1.ffn_down.weight") - wanted) <= bound).all()
    assert found.weights.type_of("output.weight") is TensorType.F32


def test_a_smaller_model_and_its_readings(tmp_path: Path) -> None:
    source = open_small(tmp_path, all_of("F32"))
    config = replace(source.config, num_layers=1, ff_width=32, num_heads=2, num_kv_heads=1, vocab_size=100)
    with CheckpointWriter(tmp_path / "out", source) as sink:
        for name, tensor in tensors_of(config, all_of("Q8_0")).items():
            sink.put(name, tensor)
        sink.config = config
        sink.readings = {"default": "int8", "blk.0.ffn_down.weight": "stored"}
        sink.side_files.pop("tokenizer.json")
    found = open_checkpoint(tmp_path / "out")
    assert found.config == replace(config, name="out", rope_pairing="half")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["subsecond"]["readings"] == {
        "blk.0.ffn_down.weight": "stored",
        "default": "int8",
    }
    # what was written is a source too, and its fields stay
    again = copy(found, tmp_path / "again")
    assert again.config == replace(found.config, name="again")


def test_what_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    source = open_small(tmp_path)
    tensors = tensors_of(SMALL, mixed)
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(tmp_path / "out", source) as sink:
        sink.put("output_norm.weight", tensors["output_norm.weight"])
        raise KeyboardInterrupt
    with pytest.raises(FormatError, match=r"'token_embd\.weight'"), CheckpointWriter(tmp_path / "out", source) as sink:
        sink.put("output_norm.weight", tensors["output_norm.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    source = open_small(tmp_path)
    found = copy(source, tmp_path / "out")
    with pytest.raises(InputError, match="out is there already and not empty"):
        copy(source, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").shapes == found.shapes
    assert copy(source, tmp_path / "out", can_replace=True).shapes == found.shapes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "small.gguf"]


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    source = open_small(tmp_path)
    tensor = stored((4, 32), "Q8_0", np.random.default_rng(0))
    with pytest.raises(FormatError, match=r"has 136 bytes.*34"), CheckpointWriter(tmp_path / "out", source) as sink:
        sink.put("blk.0.ffn_up.weight", replace(tensor, shape=(4, 64)))
    with (
        pytest.raises(UnsupportedError, match=r"'blk\.0\.ssm_in\.weight' has no name"),
        CheckpointWriter(tmp_path / "out", source) as sink,
    ):
        sink.put("blk.0.ssm_in.weight", tensor)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = open_small(tmp_path)
    for name in ("a", "b"):
        copy(source, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
