"""Configurations and tensor shapes of decoders too small to mean anything, for tests of structure."""

from __future__ import annotations

from dataclasses import replace

from subsecond.graph.graph import Graph
from subsecond.models.config import ModelConfig
from subsecond.models.families.registry import build_graph

TINY = ModelConfig(
    family="llama",
    name="tiny",
    num_layers=2,
    width=24,
    ff_width=40,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=50,
    context_length=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rope_dims=8,
    rope_pairing="interleaved",
)


def tiny_shapes(config: ModelConfig, *, is_tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that a file of this configuration has."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, config.width),
        "output_norm.weight": (config.width,),
    }
    if not is_tied:
        shapes["output.weight"] = (config.vocab_size, config.width)
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for layer in range(config.num_layers):
        blk = f"blk.{layer}"
        shapes[f"{blk}.attn_norm.weight"] = shapes[f"{blk}.ffn_norm.weight"] = (config.width,)
        for name, width in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{blk}.attn_{name}.weight"] = (width, config.width)
            if config.family == "qwen2":
                shapes[f"{blk}.attn_{name}.bias"] = (width,)
        shapes[f"{blk}.attn_output.weight"] = (config.width, q)
        shapes[f"{blk}.ffn_gate.weight"] = shapes[f"{blk}.ffn_up.weight"] = (config.ff_width, config.width)
        shapes[f"{blk}.ffn_down.weight"] = (config.width, config.ff_width)
    return shapes


def tiny_graph(family: str = "llama") -> Graph:
    """The unfused graph of a tiny model."""
    config = replace(TINY, family=family, rope_pairing="interleaved" if family == "llama" else "half")
    return build_graph(config, tiny_shapes(config))


def kinds(graph: Graph) -> list[str]:
    """Names of the operators in order."""
    return [type(op).__name__ for op in graph.ops]
