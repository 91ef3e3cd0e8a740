"""Phi-3, Phi-3.5 and Phi-4: Llama with query, key and value in one weight, and gate and up in another."""

from __future__ import annotations

from subsecond.models.families.family import Family, Form, window_in_all_layers
from subsecond.models.families.hf_type import HfType

# Phi-3 report, arXiv 2404.14219.
FAMILY = Family(
    names=("phi3",),
    hf_types=(
        HfType(
            "phi3",
            "Phi3ForCausalLM",
            original_context=4096,
            rope_kinds={"yarn": "longrope"},  # in early files
        ),
    ),
    form=Form(has_fused_qkv=True, feed_forward="fused"),
    complete=window_in_all_layers,
    hf_tensors={
        "blk.{layer}.attn_qkv": "model.layers.{layer}.self_attn.qkv_proj",
        "blk.{layer}.ffn_up": "model.layers.{layer}.mlp.gate_up_proj",
    },
)
