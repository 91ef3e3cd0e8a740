"""Folders of Hugging Face, valid and mutated: configuration, safetensors (one, sharded, int4), tokenizer files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import Random
from typing import Any

from tests import byte_vocabulary
from tests.fuzz import file_bundle, hostile_values, json_trees, tiny_model
from tests.fuzz.binary_parts import mutate_bytes

CONFIG, INDEX, FIRST, SECOND, SINGLE, TOKENIZER, SIDE = range(7)
FILES = (
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
KINDS = ("plain", "sharded", "gptq", "awq", "compressed", "qwen2")
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QUANTIZATION: Mapping[str, dict[str, object]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "compressed": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
            }
        },
    },
}
_GROUP = 32

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def mutated_folder(rng: Random) -> bytes:
    """A bundle of FILES with something wrong in one or two of them."""
    kind = rng.choice(KINDS)
    contents = [*_base(kind)]
    present = [index for index, content in enumerate(contents) if content is not None]
    for _ in range(rng.choice((1, 1, 2))):
        index = rng.choice((CONFIG, *present))
        contents[index] = _mutated_file(kind, index, rng)
    if rng.random() < 0.03:
        contents[rng.choice(present)] = None
    return file_bundle.pack(contents)


def mutated_safetensors(rng: Random) -> bytes:
    """One safetensors file with something wrong."""
    return _mutated_file(rng.choice(("plain", "gptq", "awq", "compressed")), SINGLE, rng)


def valid_folder(kind: str) -> bytes:
    """A bundle of FILES without a fault."""
    return file_bundle.pack(_base(kind))


def _mutated_file(kind: str, index: int, rng: Random) -> bytes:
    content = _base(kind)[index] or b""
    if index in (FIRST, SECOND, SINGLE):
        return _mutated_tensors(content, rng)
    return json_trees.mutate(_tree(content), rng)


def _mutated_tensors(content: bytes, rng: Random) -> bytes:
    (length,) = struct.unpack_from("<Q", content)
    header, data = content[8 : 8 + length], content[8 + length :]
    draw = rng.random()
    if draw < 0.1:
        return mutate_bytes(content, rng)
    if draw < 0.2:
        return hostile_values.nearby(length, rng).to_bytes(8, "little") + header + data
    if draw < 0.4:  # what int4 layouts compute with: zeros, scales, orders of inputs
        place = rng.randrange(len(data))
        return content[:8] + header + data[:place] + rng.randbytes(min(64, len(data) - place)) + data[place + 64 :]
    header = json_trees.mutate(_tree(header), rng)
    return struct.pack("<Q", len(header)) + header + data


@lru_cache(maxsize=64)
def _tree(content: bytes) -> Any:
    return json.loads(content)


@lru_cache(maxsize=len(KINDS))
def _base(kind: str) -> tuple[bytes | None, ...]:
    """Contents of FILES."""
    rng = Random(kind)
    contents: list[bytes | None] = [None] * len(FILES)
    contents[CONFIG] = json.dumps(_config(kind)).encode()
    contents[TOKENIZER] = json.dumps(_tokenizer()).encode()
    side = {"chat_template": tiny_model.CHAT_TEMPLATE, "bos_token": "<|start|>", "eos_token": {"content": "<|end|>"}}
    contents[SIDE] = json.dumps(side).encode()
    tensors = _tensors(kind, rng)
    if kind == "sharded":
        names = sorted(tensors)
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        places = {name: FILES[FIRST + index] for index, half in enumerate(halves) for name in half}
        contents[INDEX] = json.dumps({"metadata": {"total_size": 1}, "weight_map": places}).encode()
        for index, half in enumerate(halves):
            contents[FIRST + index] = _safetensors({name: tensors[name] for name in half})
    else:
        contents[SINGLE] = _safetensors(tensors)
    return tuple(contents)


def _config(kind: str) -> dict[str, object]:
    config: dict[str, object] = {
        "architectures": ["Qwen2ForCausalLM" if kind == "qwen2" else "LlamaForCausalLM"],
        "model_type": "qwen2" if kind == "qwen2" else "llama",
        "hidden_size": tiny_model.WIDTH,
        "intermediate_size": tiny_model.FF_WIDTH,
        "num_hidden_layers": tiny_model.NUM_LAYERS,
        "num_attention_heads": tiny_model.NUM_HEADS,
        "num_key_value_heads": tiny_model.NUM_KV_HEADS,
        "head_dim": tiny_model.HEAD_DIM,
        "vocab_size": tiny_model.VOCAB_SIZE,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": 265,
        "eos_token_id": [266],
    }
    if kind in _QUANTIZATION:
        config["quantization_config"] = _QUANTIZATION[kind]
    return config


def _tokenizer() -> dict[str, object]:
    texts = byte_vocabulary.token_texts(tiny_model.TOKENIZER)
    num_plain = len(texts) - len(byte_vocabulary.SPECIAL)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": texts[index], **flags, "special": True} for index in range(num_plain, len(texts))
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(texts[:num_plain])},
            "merges": byte_vocabulary.MERGES,
        },
    }


def _hf_name(name: str) -> str:
    blk, _, rest = name.partition(".")
    if blk != "blk":
        return f"{_NAMES[blk]}.{rest}"
    layer, part, suffix = rest.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.{suffix}"


def _tensors(kind: str, rng: Random) -> Tensors:
    tensors: Tensors = {}
    for name, shape in tiny_model.shapes("qwen2" if kind == "qwen2" else "llama").items():
        hf_name = _hf_name(name)
        if kind in _QUANTIZATION and name.startswith("blk.") and len(shape) == 2:
            for part, tensor in _QUANTIZED[kind](*shape, rng).items():
                tensors[f"{hf_name.removesuffix('.weight')}.{part}"] = tensor
            continue
        dtype = "BF16" if kind == "sharded" else "F32"
        type_id = tiny_model.BF16 if kind == "sharded" else tiny_model.F32
        tensors[hf_name] = (dtype, shape, tiny_model.tensor_bytes(type_id, math.prod(shape), rng))
    return tensors


def _words(rng: Random, *shape: int) -> tuple[str, tuple[int, ...], bytes]:
    return "I32", shape, rng.randbytes(4 * math.prod(shape))


def _halves(dtype: str, *shape: int) -> tuple[str, tuple[int, ...], bytes]:
    return dtype, shape, (b"\x00\x2c" if dtype == "F16" else b"\x80\x3d") * math.prod(shape)


def _gptq(outputs: int, inputs: int, rng: Random) -> Tensors:
    order = struct.pack(f"<{inputs}i", *(index // _GROUP for index in range(inputs)))
    return {
        "qweight": _words(rng, inputs // 8, outputs),
        "qzeros": _words(rng, inputs // _GROUP, outputs // 8),
        "scales": _halves("F16", inputs // _GROUP, outputs),
        "g_idx": ("I32", (inputs,), order),
    }


def _awq(outputs: int, inputs: int, rng: Random) -> Tensors:
    return {
        "qweight": _words(rng, inputs, outputs // 8),
        "qzeros": _words(rng, inputs // _GROUP, outputs // 8),
        "scales": _halves("F16", inputs // _GROUP, outputs),
    }


def _compressed(outputs: int, inputs: int, rng: Random) -> Tensors:
    return {
        "weight_packed": _words(rng, outputs, inputs // 8),
        "weight_scale": _halves("BF16", outputs, inputs // _GROUP),
        "weight_shape": ("I64", (2,), struct.pack("<2q", outputs, inputs)),
    }


_QUANTIZED: Mapping[str, Callable[[int, int, Random], Tensors]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed": _compressed,
}


def _safetensors(tensors: Tensors) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place, pieces = 0, []
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
        pieces.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(pieces)
