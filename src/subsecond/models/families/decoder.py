"""The pre-norm decoder with grouped attention and a gated feed-forward part, which several families are forms of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from subsecond.graph.builder import GraphBuilder
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Rotary
from subsecond.models.config import ModelConfig


def build_decoder(
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    pairing: Literal["interleaved", "half"],
    has_qkv_bias: bool,
) -> Graph:
    """The graph from token ids to the value "logits"; weights carry their GGUF names.

    `pairing` is the order of a head's channels in the file's query and key weights.
    """
    builder = GraphBuilder(shapes)
    factors = "rope_freqs.weight" if builder.has("rope_freqs.weight") else None
    rotary = Rotary(config.rope_theta, config.rope_dims, pairing, factors)
    x = builder.embed("embedding", "token_embd.weight", config.vocab_size, config.width)
    for layer in range(config.num_layers):
        x = _attend(builder, config, layer, x, rotary, has_qkv_bias)
        x = _feed_forward(builder, config, layer, x)
    x = builder.select_rows("selected", x)
    x = builder.rms_norm("output_norm", x, "output_norm.weight", config.norm_eps)
    head = "output.weight" if builder.has("output.weight") else "token_embd.weight"
    return builder.build(builder.linear("logits", x, head, config.vocab_size))


def _attend(builder: GraphBuilder, config: ModelConfig, layer: int, x: str, rotary: Rotary, has_bias: bool) -> str:
    blk = f"blk.{layer}"
    normed = builder.rms_norm(f"{blk}.attn_norm", x, f"{blk}.attn_norm.weight", config.norm_eps)
    q, k, v = (
        builder.linear(
            f"{blk}.{name}",
            normed,
            f"{blk}.attn_{name}.weight",
            num_heads * config.head_dim,
            bias=f"{blk}.attn_{name}.bias" if has_bias else None,
        )
        for name, num_heads in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", config.num_kv_heads))
    )
    attended = builder.attention(
        f"{blk}.attention",
        builder.rope(f"{blk}.q_rope", q, config.head_dim, rotary),
        builder.rope(f"{blk}.k_rope", k, config.head_dim, rotary),
        v,
        layer=layer,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )
    projected = builder.linear(f"{blk}.attn_output", attended, f"{blk}.attn_output.weight", config.width)
    return builder.add(f"{blk}.attn_residual", x, projected)


def _feed_forward(builder: GraphBuilder, config: ModelConfig, layer: int, x: str) -> str:
    blk = f"blk.{layer}"
    normed = builder.rms_norm(f"{blk}.ffn_norm", x, f"{blk}.ffn_norm.weight", config.norm_eps)
    gate = builder.linear(f"{blk}.gate", normed, f"{blk}.ffn_gate.weight", config.ff_width)
    up = builder.linear(f"{blk}.up", normed, f"{blk}.ffn_up.weight", config.ff_width)
    gated = builder.gated_activation(f"{blk}.gated", gate, up, "silu")
    down = builder.linear(f"{blk}.ffn_down", gated, f"{blk}.ffn_down.weight", config.width)
    return builder.add(f"{blk}.ffn_residual", x, down)
