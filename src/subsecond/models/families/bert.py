"""BERT as an embedding model: an encoder that sees the whole text, its rows pooled to one vector."""

from __future__ import annotations

from dataclasses import replace

from subsecond.models.config import ModelConfig
from subsecond.models.families.family import Family, Form
from subsecond.models.families.hf_type import HfType


def _complete(config: ModelConfig) -> ModelConfig:
    return replace(config, pooling=config.pooling or "mean")


# Devlin et al. 2018, arXiv 1810.04805; pooling by Reimers and Gurevych 2019, arXiv 1908.10084.
FAMILY = Family(
    names=("bert",),
    hf_types=(HfType("bert", "BertModel", defaults={"layer_norm_eps": 1e-12}),),
    form=Form(
        norm="layer",
        norms="sum",
        feed_forward="plain",
        activation="gelu",
        biases=frozenset({"q", "k", "v", "o", "up", "down"}),
        positions="learned",
        is_causal=False,
    ),
    complete=_complete,
    hf_tensors={
        "token_embd": "embeddings.word_embeddings",
        "position_embd": "embeddings.position_embeddings",
        "token_types": "embeddings.token_type_embeddings",
        "token_embd_norm": "embeddings.LayerNorm",
        "blk.{layer}.attn_q": "encoder.layer.{layer}.attention.self.query",
        "blk.{layer}.attn_k": "encoder.layer.{layer}.attention.self.key",
        "blk.{layer}.attn_v": "encoder.layer.{layer}.attention.self.value",
        "blk.{layer}.attn_output": "encoder.layer.{layer}.attention.output.dense",
        "blk.{layer}.attn_output_norm": "encoder.layer.{layer}.attention.output.LayerNorm",
        "blk.{layer}.ffn_up": "encoder.layer.{layer}.intermediate.dense",
        "blk.{layer}.ffn_down": "encoder.layer.{layer}.output.dense",
        "blk.{layer}.layer_output_norm": "encoder.layer.{layer}.output.LayerNorm",
    },
    hf_prefixes=("bert",),
    hf_unused=(r"embeddings\.position_ids", r"pooler\..*", r"cls\..*"),  # 0, 1, 2, ...; heads for training
)
