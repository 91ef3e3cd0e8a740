"""Qwen2 and Qwen2.5: the decoder with biases on query, key and value, and heads that pair their two halves."""

from __future__ import annotations

from collections.abc import Mapping

from subsecond.graph.graph import Graph
from subsecond.models.config import ModelConfig
from subsecond.models.families.decoder import build_decoder


def build(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The unfused graph (Qwen2 technical report, arXiv 2407.10671)."""
    return build_decoder(config, shapes, pairing="half", has_qkv_bias=True)
