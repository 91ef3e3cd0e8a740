"""GPT-2: layer norms, learned positions, biases everywhere."""

from __future__ import annotations

from subsecond.models.families.family import Family, Form

# Radford et al. 2019, Language Models are Unsupervised Multitask Learners.
FAMILY = Family(
    names=("gpt2",),
    hf_types=("gpt2",),
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
    has_transposed_linears=True,
)
