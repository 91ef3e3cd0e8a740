"""Hugging Face folders open like GGUF files: names, forms of weights, chat templates, source and artifact."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.gguf_types import TensorType
from subsecond.models.checkpoint import open_checkpoint
from subsecond.models.hf_folder import source_paths
from tests.unit.tiny_decoder import TINY as TINY_GGUF
from tests.unit.tiny_decoder import kinds, tiny_graph, tiny_shapes

TOKENS = ["<end>", *(chr(code) for code in range(0x21, 0x7F)), "\u0120"]
TINY = replace(TINY_GGUF, name="tiny", vocab_size=len(TOKENS), rope_pairing="half")

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": TINY.width,
    "intermediate_size": TINY.ff_width,
    "num_hidden_layers": TINY.num_layers,
    "num_attention_heads": TINY.num_heads,
    "num_key_value_heads": TINY.num_kv_heads,
    "head_dim": TINY.head_dim,
    "max_position_embeddings": TINY.context_length,
    "rms_norm_eps": TINY.norm_eps,
    "rope_theta": TINY.rope_theta,
    "vocab_size": TINY.vocab_size,
}
THEIR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def their_name(name: str) -> str:
    """The name in a checkpoint of one of our weights."""
    parts = name.split(".")
    if parts[0] != "blk":
        return f"{THEIR_NAMES[parts[0]]}.{parts[1]}"
    return f"model.layers.{parts[1]}.{THEIR_NAMES[parts[2]]}.{parts[3]}"


def tiny_tensors(*, is_tied: bool = True) -> dict[str, NDArray[Any]]:
    """Random weights of the tiny Llama by their names in a checkpoint."""
    rng = np.random.default_rng(1)
    shapes = tiny_shapes(TINY, is_tied=is_tied)
    return {their_name(name): rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny", CONFIG, tiny_tensors())


def test_a_folder(folder: Path) -> None:
    opened = open_checkpoint(folder)
    assert opened.artifact is None and opened.chat_template is None
    assert opened.config == TINY
    assert opened.shapes == tiny_shapes(TINY)
    assert kinds(opened.graph()) == kinds(tiny_graph())
    for name in opened.shapes:
        assert opened.weights.type_of(name) is TensorType.F32
        assert np.array_equal(opened.weights.dequantize(name), tiny_tensors()[their_name(name)])
    with pytest.raises(FormatError, match="no tensor 'x'"):
        opened.weights.raw("x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_bytes_are_given_as_they_are(folder: Path, dtype: torch.dtype) -> None:
    tensors = {name: torch.from_numpy(array).to(dtype) for name, array in tiny_tensors().items()}
    save_tensors(tensors, folder / "model.safetensors")
    weights = open_checkpoint(folder).weights
    assert weights.type_of("token_embd.weight").name == {"float16": "F16", "bfloat16": "BF16"}[str(dtype)[6:]]
    stored = tensors["model.embed_tokens.weight"]
    assert weights.raw("token_embd.weight").tobytes() == stored.view(torch.int16).numpy().tobytes()
    assert weights.raw("token_embd.weight").base is not None  # a view of the file
    assert np.array_equal(weights.dequantize("token_embd.weight"), stored.float().numpy())


@pytest.mark.parametrize("prefix", ["", "model.model.", "language_model.model."])
def test_prefixes_that_classes_add(tmp_path: Path, prefix: str) -> None:
    tensors = {name.replace("model.", prefix, 1): array for name, array in tiny_tensors(is_tied=False).items()}
    opened = open_checkpoint(write_folder(tmp_path / "x", CONFIG, tensors))
    assert opened.shapes == tiny_shapes(TINY, is_tied=False)


def test_the_same_weight_under_two_prefixes(folder: Path) -> None:
    tensors = tiny_tensors()
    save_file({**tensors, "norm.weight": tensors["model.norm.weight"]}, folder / "model.safetensors")
    with pytest.raises(FormatError, match="are the same weight"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.sinks",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.00.self_attn.q_proj.weight",
        "vision.weight",
        "weight",
    ],
)
def test_an_unexpected_tensor_is_named(folder: Path, name: str) -> None:
    save_file({**tiny_tensors(), name: np.ones(3, np.float32)}, folder / "model.safetensors")
    with pytest.raises(UnsupportedError, match=name):
        open_checkpoint(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = tiny_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"no tensor 'blk\.1\.ffn_up\.weight'"):
        open_checkpoint(folder).graph()


def test_types_that_are_not_read_are_named(folder: Path) -> None:
    save_file({**tiny_tensors(), "model.norm.weight": np.ones(TINY.width)}, folder / "model.safetensors")
    with pytest.raises(UnsupportedError, match="stored as F64; supported are F32, F16, BF16"):
        open_checkpoint(folder)


def test_heads_and_tables(tmp_path: Path) -> None:
    tied, untied = {**CONFIG, "tie_word_embeddings": True}, {**CONFIG, "tie_word_embeddings": False}
    opened = open_checkpoint(write_folder(tmp_path / "a", tied, tiny_tensors(is_tied=False)))
    assert "output.weight" not in opened.shapes
    opened = open_checkpoint(write_folder(tmp_path / "b", untied, tiny_tensors(is_tied=False)))
    assert "output.weight" in opened.shapes
    with pytest.raises(FormatError, match="no output head"):
        open_checkpoint(write_folder(tmp_path / "c", untied, tiny_tensors()))


def test_buffers_of_older_checkpoints_are_of_no_use(folder: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save_file({**tiny_tensors(), **buffer}, folder / "model.safetensors")
    assert open_checkpoint(folder).shapes == tiny_shapes(TINY)


def with_experts(experts: list[int]) -> dict[str, NDArray[Any]]:
    tensors = {name: array for name, array in tiny_tensors().items() if ".mlp." not in name}
    for layer in range(TINY.num_layers):
        block = f"model.layers.{layer}.block_sparse_moe"
        tensors[f"{block}.gate.weight"] = np.ones((len(experts), TINY.width), np.float32)
        for expert in experts:
            for part, shape in (("w1", (40, 24)), ("w3", (40, 24)), ("w2", (24, 40))):
                tensors[f"{block}.experts.{expert}.{part}.weight"] = np.full(shape, expert, np.float32)
    return tensors


def test_experts_are_stacked(tmp_path: Path) -> None:
    config = {**CONFIG, "model_type": "mixtral", "num_local_experts": 11, "num_experts_per_tok": 2}
    opened = open_checkpoint(write_folder(tmp_path / "x", config, with_experts(list(range(11)))))
    opened.graph()
    stacked = opened.weights.dequantize("blk.1.ffn_down_exps.weight")
    assert stacked.shape == opened.shapes["blk.1.ffn_down_exps.weight"] == (11, 24, 40)
    assert stacked[:, 0, 0].tolist() == list(range(11))
    with pytest.raises(FormatError, match="of expert 1 is missing"):
        open_checkpoint(write_folder(tmp_path / "y", config, with_experts([0, 2])))


def test_a_gptq_folder(tmp_path: Path) -> None:
    config = {**CONFIG, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    shapes = tiny_shapes(replace(TINY, width=64, ff_width=96, head_dim=16))
    rng = np.random.default_rng(2)
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        theirs = their_name(name)
        if len(shape) == 1 or not name.startswith("blk"):
            tensors[theirs] = rng.standard_normal(shape).astype(np.float16)
            continue
        outputs, inputs = shape
        module = theirs.removesuffix(".weight")
        words = rng.integers(0, 2**32, (inputs // 8, outputs), dtype=np.uint32)
        tensors[f"{module}.qweight"] = words.view(np.int32)
        tensors[f"{module}.qzeros"] = np.full((inputs // 32, outputs // 8), 0x77777777, np.int32)
        tensors[f"{module}.scales"] = np.full((inputs // 32, outputs), 0.25, np.float16)
        tensors[f"{module}.g_idx"] = (np.arange(inputs) // 32).astype(np.int32)
    opened = open_checkpoint(write_folder(tmp_path / "x", config, tensors))
    opened.graph()
    assert opened.shapes == shapes
    assert opened.weights.type_of("token_embd.weight") is TensorType.F16
    assert opened.weights.type_of("blk.0.ffn_up.weight") is TensorType.Q4_0
    values = opened.weights.dequantize("blk.0.ffn_up.weight")
    words = tensors["model.layers.0.mlp.up_proj.qweight"].view(np.uint32)
    assert values[3, 9] == 0.25 * (float(words[1, 3] >> np.uint32(4) & np.uint32(15)) - 8)


def test_quantized_parts_without_a_word_in_the_configuration(folder: Path) -> None:
    tensors = tiny_tensors()
    tensors["model.layers.0.mlp.up_proj.qweight"] = np.ones((3, 40), np.int32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"config\.json names no method"):
        open_checkpoint(folder)


def test_norms_stored_less_one(tmp_path: Path) -> None:
    config = {**CONFIG, "model_type": "gemma2", "query_pre_attn_scalar": 8}
    tensors = tiny_tensors()
    for layer in range(TINY.num_layers):
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.full(TINY.width, 0.25, np.float32)
    opened = open_checkpoint(write_folder(tmp_path / "x", config, tensors))
    opened.graph()
    assert opened.weights.dequantize("blk.0.post_ffw_norm.weight").tolist() == [1.25] * TINY.width
    stored = tensors["model.layers.0.post_attention_layernorm.weight"]
    assert np.array_equal(opened.weights.dequantize("blk.0.post_attention_norm.weight"), stored + 1)
    stored = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(opened.weights.dequantize("blk.0.attn_q.weight"), stored)


def test_the_text_part_of_a_model_for_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = tiny_tensors()
    for layer in range(TINY.num_layers):
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = np.ones(TINY.width, np.float32)
        for name in ("q_norm", "k_norm"):
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = np.ones(TINY.head_dim, np.float32)
    tensors = {f"language_model.{name}": array for name, array in tensors.items()}
    tensors["vision_tower.vision_model.embeddings.patch_embedding.weight"] = np.ones((2, 3, 4, 4), np.float32)
    text = {**CONFIG, "model_type": "gemma3_text", "query_pre_attn_scalar": 8}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
    with caplog.at_level(logging.WARNING):
        opened = open_checkpoint(write_folder(tmp_path / "x", config, tensors))
    opened.graph()
    assert "only the text part" in caplog.text
    assert "blk.0.attn_q_norm.weight" in opened.shapes


def bert_tensors(prefix: str) -> dict[str, NDArray[Any]]:
    import transformers

    config = transformers.BertConfig(
        vocab_size=TINY.vocab_size, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4
    )
    state = transformers.BertModel(config).state_dict()
    return {f"{prefix}{name}": tensor.numpy() for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert_with_and_without_its_prefix(tmp_path: Path, prefix: str) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("num_key_value_heads", "head_dim")}
    config |= {"model_type": "bert", "num_hidden_layers": 1, "max_position_embeddings": 512}
    tensors = bert_tensors(prefix)
    tensors[f"{prefix}embeddings.position_ids"] = np.arange(512)[None]
    tensors["cls.predictions.bias"] = np.ones(50, np.float32)
    opened = open_checkpoint(write_folder(tmp_path / "x", config, tensors))
    opened.graph()
    assert opened.config.pooling == "mean"
    assert opened.shapes["token_types.weight"] == (2, 24)


def test_chat_templates(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    settings.write_text('{"chat_template": "plain"}')
    assert open_checkpoint(folder)._content.chat_template_source == "plain"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "usual"}]
    settings.write_text(json.dumps({"chat_template": several}))
    assert open_checkpoint(folder)._content.chat_template_source == "usual"
    (folder / "chat_template.json").write_text('{"chat_template": "json"}')
    assert open_checkpoint(folder)._content.chat_template_source == "json"
    (folder / "chat_template.jinja").write_text("jinja \u00fc", encoding="utf-8")
    assert open_checkpoint(folder)._content.chat_template_source == "jinja \u00fc"


def test_chat_templates_without_a_default(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    several = [{"name": "tool_use", "template": "tools"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(folder).chat_template is None
    assert "none of the name 'default'" in caplog.text
    (folder / "tokenizer_config.json").write_text('{"chat_template": 3}')
    with pytest.raises(FormatError, match="must be text, or a list"):
        _ = open_checkpoint(folder).chat_template


def write_tokenizer(folder: Path) -> None:
    """A byte-level vocabulary of the tiny model's size, as the tokenizers library writes it."""
    content = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<end>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(TOKENS)}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_an_artifact_beside_a_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tokenizer(folder)
    opened = open_checkpoint(folder)
    assert opened.source.name == "model.safetensors"
    assert opened.source.num_bytes > (folder / "model.safetensors").stat().st_size
    with opened.artifact_writer(folder, {"layout": 7}) as writer:
        writer.add_tensor("norm", np.ones(4, np.uint8), packed_format="vector", n=1, k=1)
    again = open_checkpoint(folder)
    assert again.artifact is not None and again.config == opened.config and again.shapes == opened.shapes
    assert again.tokenizer.encode("AB") == opened.tokenizer.encode("AB") == [TOKENS.index("A"), TOKENS.index("B")]
    assert np.array_equal(again.weights.dequantize("output_norm.weight"), tiny_tensors()["model.norm.weight"])
    assert open_checkpoint(folder, can_use_artifact=False).artifact is None
    (folder / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 1e-3}))
    with caplog.at_level(logging.WARNING):
        changed = open_checkpoint(folder)
    assert changed.artifact is None and changed.config.norm_eps == 1e-3
    assert "belong to another version of it" in caplog.text


def add_artifact(folder: Path) -> None:
    write_tokenizer(folder)
    with open_checkpoint(folder).artifact_writer(folder, {"layout": 7}) as writer:
        writer.add_tensor("norm", np.ones(4, np.uint8), packed_format="vector", n=1, k=1)


def test_an_older_file_exchanged_for_one_of_the_same_size_is_noticed(folder: Path) -> None:
    add_artifact(folder)
    assert open_checkpoint(folder).artifact is not None
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(1, 1))  # the newest time stays that of another file
    assert open_checkpoint(folder).artifact is None


def test_files_with_other_times_are_read_in_full_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_artifact(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert open_checkpoint(folder).artifact is not None
    monkeypatch.setattr("subsecond.models.checkpoint.describe", None)
    assert open_checkpoint(folder).artifact is not None


def test_the_pooling_that_modules_name_is_part_of_the_source(folder: Path) -> None:
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "2_Pool"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling", "2_Pool"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"pooling_mode": "mean"}')
    assert [path for path in source_paths(folder) if "Pool" in str(path)] == [folder / "2_Pool" / "config.json"]


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt"])
def test_another_form_of_the_vocabulary_is_named(folder: Path, name: str) -> None:
    (folder / name).touch()
    (folder / "chat_template.jinja").write_text("x")
    opened = open_checkpoint(folder)
    assert opened.has_chat_template
    with pytest.raises(InputError, match=rf"no tokenizer\.json, only {name}; .*AutoTokenizer.*save_pretrained"):
        _ = opened.tokenizer


def test_an_artifact_alone_has_no_original_weights(folder: Path) -> None:
    write_tokenizer(folder)
    with open_checkpoint(folder).artifact_writer(folder, {"layout": 7}) as writer:
        writer.add_tensor("norm", np.ones(4, np.uint8), packed_format="vector", n=1, k=1)
    (folder / "model.safetensors").unlink()
    alone = open_checkpoint(folder)
    assert alone.artifact is not None
    with pytest.raises(UnsupportedError, match="holds packed weights only"):
        _ = alone.weights


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder without config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match="pickled"):
        open_checkpoint(tmp_path)


def test_the_folder_is_named_in_errors(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "mamba"}))
    with pytest.raises(UnsupportedError, match=r"tiny: model architecture 'mamba'"):
        open_checkpoint(folder)


def test_models_in_the_cache_of_the_hub_have_their_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--some-owner--a-model" / "snapshots" / "0123abcd"
    folder.parent.mkdir(parents=True)
    assert open_checkpoint(write_folder(folder, CONFIG, tiny_tensors())).config.name == "a-model"


READINGS = {"default": "int8", "blk.0.ffn_down.weight": "stored"}


def test_readings_of_a_folder_stay_in_its_artifact(folder: Path) -> None:
    assert open_checkpoint(folder).readings == {}
    (folder / "config.json").write_text(json.dumps({**CONFIG, "subsecond": {"readings": READINGS}}))
    assert open_checkpoint(folder).readings == READINGS
    add_artifact(folder)
    packed = open_checkpoint(folder)
    assert packed.artifact is not None and packed.readings == READINGS
    (folder / "model.safetensors").rename(folder / "gone")
    alone = open_checkpoint(folder)
    assert alone.artifact is not None and alone.readings == READINGS


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"readings": {"blk.9.ffn_down.weight": "int8"}},
            r"readings of 'blk.9.ffn_down.weight'; allowed are the mat",
        ),
        ({"readings": {"output_norm.weight": "int8"}}, r"readings of 'output_norm.weight'; allowed .* and 'default'"),
        ({"readings": {"default": "int2"}}, r"the reading of 'default' is 'int2'; give one of stored, int8, int4"),
        ({"readings": {"default": ["int8"]}}, r"the reading of 'default' is \['int8'\]; give one of"),
        ({"readings": [1]}, r"field 'readings' is \[1\]; it must be an object"),
        ([], r"field 'subsecond' is \[\]; it must be an object"),
    ],
)
def test_readings_that_are_none_are_refused(folder: Path, section: object, message: str) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "subsecond": section}))
    with pytest.raises(FormatError, match=message):
        open_checkpoint(folder)
