"""GPT-2: layer norms, learned positions, biases everywhere."""

from __future__ import annotations

from subsecond.models.families.family import Family, Form
from subsecond.models.families.hf_type import HfType

# Radford et al. 2019, Language Models are Unsupervised Multitask Learners.
FAMILY = Family(
    names=("gpt2",),
    hf_types=(
        HfType(
            "gpt2",
            "GPT2LMHeadModel",
            defaults={"layer_norm_epsilon": 1e-5},
            field_names={
                "hidden_size": "n_embd",
                "num_hidden_layers": "n_layer",
                "num_attention_heads": "n_head",
                "max_position_embeddings": "n_positions",
                "intermediate_size": "n_inner",
                "hidden_act": "activation_function",
            },
            ff_ratio=4,
        ),
    ),
    form=Form(
        norm="layer",
        has_fused_qkv=True,
        feed_forward="plain",
        activation="gelu_tanh",
        biases=frozenset({"qkv", "o", "up", "down"}),
        positions="learned",
    ),
    hf_tensors={
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "blk.{layer}.attn_norm": "transformer.h.{layer}.ln_1",
        "blk.{layer}.attn_qkv": "transformer.h.{layer}.attn.c_attn",
        "blk.{layer}.attn_output": "transformer.h.{layer}.attn.c_proj",
        "blk.{layer}.ffn_norm": "transformer.h.{layer}.ln_2",
        "blk.{layer}.ffn_up": "transformer.h.{layer}.mlp.c_fc",
        "blk.{layer}.ffn_down": "transformer.h.{layer}.mlp.c_proj",
    },
    hf_prefixes=("transformer",),
    hf_unused=(r"h\.\d+\.attn\.(?:bias|masked_bias)",),  # the causal mask; no layer has a weight of this name
    has_transposed_linears=True,
)
