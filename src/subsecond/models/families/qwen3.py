"""Qwen3, dense and with experts: queries and keys are normalized head by head."""

from __future__ import annotations

from subsecond.models.families.family import Family, Form

# Qwen3 technical report, arXiv 2505.09388.
FAMILY = Family(
    names=("qwen3", "qwen3moe"),
    hf_types=("qwen3", "qwen3_moe"),
    form=Form(has_head_norms="head", biases=None),
    hf_tensors={
        "blk.{layer}.ffn_gate_inp": "model.layers.{layer}.mlp.gate",
        "blk.{layer}.ffn_gate_exps": "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
        "blk.{layer}.ffn_up_exps": "model.layers.{layer}.mlp.experts.{expert}.up_proj",
        "blk.{layer}.ffn_down_exps": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    },
)
