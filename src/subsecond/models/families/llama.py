"""Llama and the many models that share its form, with or without experts: Mistral, Mixtral, TinyLlama, SmolLM2, Yi."""

from __future__ import annotations

from subsecond.models.families.family import Family, Form, window_in_all_layers
from subsecond.models.families.hf_type import HfType

# Touvron et al. 2023, arXiv 2302.13971; Jiang et al. 2023, arXiv 2310.06825; Jiang et al. 2024, arXiv 2401.04088.
# GGUF files order the channels of a head in pairs.
FAMILY = Family(
    names=("llama",),
    hf_types=(
        HfType("llama", "LlamaForCausalLM"),
        HfType("mistral", "MistralForCausalLM", defaults={"sliding_window": 4096}),
        HfType("mixtral", "MixtralForCausalLM", defaults={"rope_theta": 1e6}, expert_width="intermediate_size"),
    ),
    form=Form(biases=None),
    gguf_pairing="interleaved",
    complete=window_in_all_layers,
    hf_tensors={
        "blk.{layer}.ffn_gate_inp": "model.layers.{layer}.block_sparse_moe.gate",
        "blk.{layer}.ffn_gate_exps": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1",
        "blk.{layer}.ffn_up_exps": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3",
        "blk.{layer}.ffn_down_exps": "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2",
    },
)
