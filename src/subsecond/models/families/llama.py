"""Llama and the many models that share its form; its GGUF files order the channels of query and key heads in pairs."""

from __future__ import annotations

from collections.abc import Mapping

from subsecond.graph.graph import Graph
from subsecond.models.config import ModelConfig
from subsecond.models.families.decoder import build_decoder


def build(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The unfused graph (Touvron et al. 2023, arXiv 2302.13971)."""
    return build_decoder(config, shapes, pairing="interleaved", has_qkv_bias=False)
