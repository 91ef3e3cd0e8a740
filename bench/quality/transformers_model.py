"""Builds a transformers model of one of our configurations and maps weights to and from it, as a second opinion."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from subsecond.models.config import ModelConfig

_GGUF_NAME_BY_NAME = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def random_model(config: ModelConfig, *, is_tied: bool, seed: int) -> PreTrainedModel:
    """A float32 model in which every weight matters: biases are not zero and norms not one."""
    model = empty_model(config, is_tied=is_tied)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * 1.5 / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(noise * 0.3 + (0.0 if name.endswith("bias") else 1.0))
    return model


def model_of(
    config: ModelConfig, dequantize: Callable[[str], NDArray[np.float32]], *, is_tied: bool
) -> PreTrainedModel:
    """The float32 model whose weights `dequantize` gives by GGUF name."""
    model = empty_model(config, is_tied=is_tied)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weight_of(config, dequantize, name))
    return model


def weight_of(config: ModelConfig, dequantize: Callable[[str], NDArray[np.float32]], name: str) -> Tensor:
    """The weight that transformers calls `name`, of those that `dequantize` gives by GGUF name."""
    weight = torch.from_numpy(dequantize(gguf_name(name)))
    num_heads = _interleaved_heads(config, name)
    return deinterleave(weight, num_heads) if num_heads else weight


def gguf_weights(config: ModelConfig, model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of `model` by GGUF name, in the channel order that GGUF files of its family have."""
    weights = {}
    for name, parameter in model.named_parameters():
        num_heads = _interleaved_heads(config, name)
        weight = parameter.detach()
        weights[gguf_name(name)] = interleave(weight, num_heads) if num_heads else weight
    return weights


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`, and so on; KeyError for unknown modules."""
    module, _, kind = name.rpartition(".")
    match = _IN_LAYER.fullmatch(module)
    if match is None:
        return f"{_GGUF_NAME_BY_NAME[module]}.{kind}"
    return f"blk.{match[1]}.{_GGUF_NAME_BY_NAME[match[2]]}.{kind}"


def interleave(weight: Tensor, num_heads: int) -> Tensor:
    """Rows (0, 1, ... d/2 - 1, d/2, ...) of each head to the order (0, d/2, 1, d/2 + 1, ...)."""
    return weight.reshape(num_heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def deinterleave(weight: Tensor, num_heads: int) -> Tensor:
    """The inverse of `interleave`."""
    return weight.reshape(num_heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _interleaved_heads(config: ModelConfig, name: str) -> int:
    """Number of heads of a weight whose channels the family's files interleave, 0 for all others."""
    if config.family != "llama":
        return 0
    return config.num_heads if ".q_proj." in name else config.num_kv_heads if ".k_proj." in name else 0


def empty_model(config: ModelConfig, *, is_tied: bool) -> PreTrainedModel:
    """A model of the configuration, with the weights that transformers starts from."""
    numbers: dict[str, Any] = {
        "hidden_size": config.width,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": is_tied,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": "eager",
        "dtype": torch.float32,
    }
    model: PreTrainedModel
    if config.family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**numbers))
    elif config.family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**numbers))
    else:
        raise ValueError(f"no transformers model is known here for family {config.family!r}")
    model.eval()
    return model
