"""Gemma 3 (text): five local layers to a global one, each kind with its own rotary base, and norms of heads."""

from __future__ import annotations

from dataclasses import replace

from subsecond.models.config import ModelConfig
from subsecond.models.families.family import Family, Form
from subsecond.models.families.gemma2 import HF_DEFAULTS, POST_NORM_TENSORS
from subsecond.models.families.hf_type import HfType

# Gemma 3 report, arXiv 2503.19786. The scores of the largest model are scaled by width / heads.
_LAYERS_OF_27B = 62
_PERIOD = 6
_LOCAL_THETA = 10000.0
_TEXT_DEFAULTS = {
    **HF_DEFAULTS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
}


def _complete(config: ModelConfig) -> ModelConfig:
    scale = config.attention_scale
    if scale is None and config.num_layers == _LAYERS_OF_27B:
        scale = (config.width / config.num_heads) ** -0.5
    local = tuple(layer for layer in range(config.num_layers) if (layer + 1) % _PERIOD)
    return replace(
        config,
        embedding_scale=config.width**0.5,
        attention_scale=scale,
        window_layers=config.window_layers or (local if config.window else ()),
        local_rope_theta=config.local_rope_theta or _LOCAL_THETA,
    )


FAMILY = Family(
    names=("gemma3",),
    hf_types=(
        HfType(
            "gemma3_text",
            "Gemma3ForCausalLM",
            defaults=_TEXT_DEFAULTS,
            has_score_scalar=True,
            window_period=_PERIOD,
            local_rope_theta=_LOCAL_THETA,
        ),
        HfType("gemma3", text_type="gemma3_text"),
    ),
    form=Form(norms="around", has_head_norms="head", activation="gelu_tanh"),
    gguf_defaults={},
    gguf_ignored=frozenset({"final_logit_softcapping"}),  # some files have the cap of Gemma 2
    has_gguf_merges_by_id=True,
    complete=_complete,
    hf_tensors=POST_NORM_TENSORS,
    has_unit_norms=True,
    exceeds_half=True,
)
