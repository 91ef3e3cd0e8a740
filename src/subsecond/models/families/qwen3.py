"""Qwen3, dense and with experts: queries and keys are normalized head by head."""

from __future__ import annotations

from subsecond.models.families.family import Family, Form
from subsecond.models.families.hf_type import HfType

# Qwen3 technical report, arXiv 2505.09388.
FAMILY = Family(
    names=("qwen3", "qwen3moe"),
    hf_types=(
        HfType("qwen3", "Qwen3ForCausalLM", defaults={"head_dim": 128}, has_switched_windows=True, window_start=28),
        HfType(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            architecture="qwen3moe",
            defaults={"norm_topk_prob": False},
            ignored=frozenset({"layer_types"}),
            expert_width="moe_intermediate_size",
            has_switched_windows=True,
        ),
    ),
    form=Form(has_head_norms="head", biases=None),
    hf_tensors={
        "blk.{layer}.ffn_gate_inp": "model.layers.{layer}.mlp.gate",
        "blk.{layer}.ffn_gate_exps": "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
        "blk.{layer}.ffn_up_exps": "model.layers.{layer}.mlp.experts.{expert}.up_proj",
        "blk.{layer}.ffn_down_exps": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    },
)
