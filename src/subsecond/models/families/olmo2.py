"""OLMo 2: norms after each part of a layer, and over the whole rows of queries and keys."""

from __future__ import annotations

from subsecond.models.families.family import Family, Form
from subsecond.models.families.hf_type import HfType

# OLMo 2 report, arXiv 2501.00656.
FAMILY = Family(
    names=("olmo2",),
    hf_types=(HfType("olmo2", "Olmo2ForCausalLM"),),
    form=Form(norms="after", has_head_norms="row"),
    hf_tensors={
        "blk.{layer}.post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
        "blk.{layer}.post_ffw_norm": "model.layers.{layer}.post_feedforward_layernorm",
    },
)
