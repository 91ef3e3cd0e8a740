"""Gemma 2: norms around each part, windows in every other layer, capped scores and logits."""

from __future__ import annotations

from dataclasses import replace

from subsecond.models.config import ModelConfig
from subsecond.models.families.family import Family, Form

# Gemma 2 report, arXiv 2408.00118. The scores of the largest model are scaled by the width of a head if it were
# width / heads; files in GGUF do not say so.
_LAYERS_OF_27B = 46
POST_NORM_TENSORS = {
    "blk.{layer}.post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
    "blk.{layer}.ffn_norm": "model.layers.{layer}.pre_feedforward_layernorm",
    "blk.{layer}.post_ffw_norm": "model.layers.{layer}.post_feedforward_layernorm",
}


def _complete(config: ModelConfig) -> ModelConfig:
    scale = config.attention_scale
    if scale is None and config.num_layers == _LAYERS_OF_27B:
        scale = (config.width / config.num_heads) ** -0.5
    windows = config.window_layers or (tuple(range(0, config.num_layers, 2)) if config.window else ())
    return replace(config, embedding_scale=config.width**0.5, attention_scale=scale, window_layers=windows)


FAMILY = Family(
    names=("gemma2",),
    hf_types=("gemma2",),
    form=Form(norms="around", activation="gelu_tanh"),
    complete=_complete,
    hf_tensors=POST_NORM_TENSORS,
    has_unit_norms=True,
)
