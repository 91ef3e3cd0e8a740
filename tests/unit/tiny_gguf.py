"""Small random models as GGUF files with a byte-level tokenizer, written by the gguf package; for tests of writers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from subsecond.formats.gguf_types import TensorType
from subsecond.models.config import ModelConfig
from subsecond.models.weights import StoredTensor
from tests import byte_vocabulary
from tests.unit.tiny_decoder import TINY, tiny_shapes

TOKENIZER = byte_vocabulary.metadata()
CHAT_TEMPLATE = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
SMALL = replace(
    TINY,
    width=64,
    ff_width=96,
    head_dim=16,
    rope_dims=16,
    vocab_size=len(byte_vocabulary.token_texts(TOKENIZER)),
    context_length=128,
)
TypeRule = Callable[[str], str]


def all_of(type_name: str) -> TypeRule:
    """Every matrix in this type; vectors as F32."""
    return lambda _: type_name


def mixed(name: str) -> str:
    """Four bits, eight bits and plain linears in one model."""
    if name.startswith("token_embd"):
        return "F16"
    return "Q8_0" if "ffn_down" in name else "BF16" if "attn_v" in name else "Q4_0"


def stored(shape: tuple[int, ...], type_name: str, rng: np.random.Generator) -> StoredTensor:
    """Random values in a type, near one for vectors."""
    values = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2) + np.float32(len(shape) == 1)
    raw = gguf.quantize(values, gguf.GGMLQuantizationType[type_name])
    return StoredTensor(TensorType[type_name], shape, np.ascontiguousarray(raw).reshape(-1).view(np.uint8))


def tensors_of(config: ModelConfig, rule: TypeRule, *, is_tied: bool = True, seed: int = 3) -> dict[str, StoredTensor]:
    """Random weights of the model."""
    rng = np.random.default_rng(seed)
    shapes = tiny_shapes(config, is_tied=is_tied)
    return {name: stored(shape, rule(name) if len(shape) > 1 else "F32", rng) for name, shape in shapes.items()}


def write_gguf(
    path: Path, config: ModelConfig, tensors: Mapping[str, StoredTensor], tokenizer: Mapping[str, object] = TOKENIZER
) -> Path:
    """The file of a model without windows and scaled positions."""
    writer = gguf.GGUFWriter(path, config.family)
    writer.add_name(config.name)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rope_dims)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    for key, value in tokenizer.items():
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in tensors.items():
        raw_type = gguf.GGMLQuantizationType(int(tensor.type))
        rows = tensor.raw.reshape(*tensor.shape[:-1], -1)
        if tensor.type is TensorType.F32:
            writer.add_tensor(name, rows.view(np.float32))
        else:
            writer.add_tensor(name, rows, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
