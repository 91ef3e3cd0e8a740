"""Gemma 2: norms around each part, windows in every other layer, capped scores and logits."""

from __future__ import annotations

from dataclasses import replace

from subsecond.models.config import ModelConfig
from subsecond.models.families.family import Family, Form
from subsecond.models.families.hf_type import HfType

# Gemma 2 report, arXiv 2408.00118. The scores of the largest model are scaled by the width of a head if it were
# width / heads; files in GGUF do not say so.
_LAYERS_OF_27B = 46
_PERIOD = 2
_WINDOW, _SCORE_CAP, _LOGIT_CAP = 4096, 50.0, 30.0
HF_DEFAULTS = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": _WINDOW, "rms_norm_eps": 1e-6}
POST_NORM_TENSORS = {
    "blk.{layer}.post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
    "blk.{layer}.ffn_norm": "model.layers.{layer}.pre_feedforward_layernorm",
    "blk.{layer}.post_ffw_norm": "model.layers.{layer}.post_feedforward_layernorm",
}


def _complete(config: ModelConfig) -> ModelConfig:
    scale = config.attention_scale
    if scale is None and config.num_layers == _LAYERS_OF_27B:
        scale = (config.width / config.num_heads) ** -0.5
    windows = config.window_layers or (tuple(range(0, config.num_layers, _PERIOD)) if config.window else ())
    return replace(config, embedding_scale=config.width**0.5, attention_scale=scale, window_layers=windows)


FAMILY = Family(
    names=("gemma2",),
    hf_types=(
        HfType(
            "gemma2",
            "Gemma2ForCausalLM",
            defaults={**HF_DEFAULTS, "attn_logit_softcapping": _SCORE_CAP, "final_logit_softcapping": _LOGIT_CAP},
            ignored=frozenset({"sliding_window_pattern", "_sliding_window_pattern"}),
            has_score_scalar=True,
            window_period=_PERIOD,
        ),
    ),
    form=Form(norms="around", activation="gelu_tanh"),
    # The first files have no keys for these.
    gguf_defaults={
        "rope_theta": 10000.0,
        "window": _WINDOW,
        "attention_softcap": _SCORE_CAP,
        "logit_softcap": _LOGIT_CAP,
    },
    has_gguf_merges_by_id=True,
    complete=_complete,
    hf_tensors=POST_NORM_TENSORS,
    has_unit_norms=True,
    exceeds_half=True,
)
