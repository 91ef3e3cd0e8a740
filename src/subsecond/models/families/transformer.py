"""Writes the graph of a transformer, decoder or encoder, from a configuration and the form of its family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from subsecond.graph.builder import GraphBuilder
from subsecond.graph.graph import Graph
from subsecond.graph.ops import Attention, MixtureOfExperts, Norm, Rotary
from subsecond.models.config import ModelConfig
from subsecond.models.families.family import Form
from subsecond.models.rope import LONG_FACTORS, SHORT_FACTORS, is_long, make_rotary

# The norm after a part of a layer has another name where it follows the sum.
_AFTER_NORMS = {
    "after": ("post_attention_norm", "post_ffw_norm"),
    "around": ("post_attention_norm", "post_ffw_norm"),
    "sum": ("attn_output_norm", "layer_output_norm"),
}


def build_transformer(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], form: Form
) -> tuple[Graph, frozenset[str]]:
    """The graph from token ids to logits (of an embedding model: to hidden rows), and the weights that it may ignore.

    Weights carry their GGUF names.
    """
    ignored = {LONG_FACTORS, SHORT_FACTORS} if config.rope_scaling else set()
    if config.pooling is not None:
        ignored |= {"output.weight", "output.bias"}
    return _Writer(config, shapes, form).write(), frozenset(ignored)


class _Writer:
    """Holds what every part of the graph needs."""

    def __init__(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], form: Form) -> None:
        self.config = config
        self.form = form
        self.activation = config.activation or form.activation
        self.builder = GraphBuilder(shapes)
        self.rotary: Rotary | None = None
        self.local_rotary: Rotary | None = None
        if form.positions == "rotary":
            self.rotary, self.local_rotary = self._rotaries()

    def write(self) -> Graph:
        builder, config = self.builder, self.config
        x = self._embed()
        for layer in range(config.num_layers):
            blk = f"blk.{layer}"
            x = self._part(x, f"{blk}.attn", 0, partial(self._attend, blk, layer))
            x = self._part(x, f"{blk}.ffn", 1, partial(self._feed_forward, blk))
        x = builder.select_rows("selected", x)
        if self.form.norms != "sum":
            x = builder.normalize("output_norm", x, self._norm("output_norm"))
        if config.pooling is not None:
            return builder.build(x)
        head = "output.weight" if builder.has("output.weight") else "token_embd.weight"
        name = "logits" if config.logit_softcap is None else "uncapped"
        bias = "output.bias" if builder.has("output.bias") else None
        x = builder.linear(name, x, head, config.vocab_size, bias=bias)
        return builder.build(x if config.logit_softcap is None else builder.softcap("logits", x, config.logit_softcap))

    def _rotaries(self) -> tuple[Rotary, Rotary]:
        candidates = (LONG_FACTORS, SHORT_FACTORS) if is_long(self.config) else (SHORT_FACTORS, LONG_FACTORS)
        factors = next((name for name in ("rope_freqs.weight", *candidates) if self.builder.has(name)), None)
        return make_rotary(self.config, factors=factors), make_rotary(self.config, factors=factors, is_local=True)

    def _norm(self, name: str) -> Norm:
        bias = f"{name}.bias" if self.form.norm == "layer" else None
        return Norm(f"{name}.weight", self.config.norm_eps, self.form.norm, bias)

    def _embed(self) -> str:
        builder, config = self.builder, self.config
        x = builder.embed("embedding", "token_embd.weight", config.vocab_size, config.width)
        if config.embedding_scale != 1.0:
            x = builder.scale("embedding_scaled", x, config.embedding_scale)
        if config.num_token_types:
            types = builder.embed(
                "token_type", "token_types.weight", config.num_token_types, config.width, index="first"
            )
            x = builder.add("embedding_typed", x, types)
        if self.form.positions == "learned":
            table = builder.embed(
                "position", "position_embd.weight", config.context_length, config.width, index="position"
            )
            x = builder.add("embedding_placed", x, table)
        return builder.normalize("embedding_norm", x, self._norm("token_embd_norm")) if self.form.norms == "sum" else x

    def _part(self, x: str, name: str, index: int, write: Callable[[str], str]) -> str:
        """A residual part of a layer with the norms around it."""
        builder, norms = self.builder, self.form.norms
        source = x
        if norms in ("before", "around"):
            source = builder.normalize(f"{name}_norm", x, self._norm(f"{name}_norm"))
        y = write(source)
        after = f"{name.rpartition('.')[0]}.{_AFTER_NORMS[norms][index]}" if norms in _AFTER_NORMS else ""
        if norms in ("after", "around"):
            y = builder.normalize(after, y, self._norm(after))
        y = builder.add(f"{name}_residual", x, y)
        return builder.normalize(after, y, self._norm(after)) if norms == "sum" else y

    def _linear(self, output: str, source: str, weight: str, width: int, kind: str) -> str:
        bias: str | None = f"{weight}.bias"
        required = self.form.biases
        if required is None:
            bias = bias if self.builder.has(f"{weight}.bias") else None
        elif kind not in required:
            bias = None
        return self.builder.linear(output, source, f"{weight}.weight", width, bias=bias)

    def _queries_keys_values(self, blk: str, x: str) -> tuple[str, str, str]:
        config, builder = self.config, self.builder
        widths = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        if self.form.has_fused_qkv:
            fused = self._linear(f"{blk}.qkv", x, f"{blk}.attn_qkv", sum(widths), "qkv")
            ends = widths[0], widths[0] + widths[1], sum(widths)
            q, k, v = (
                builder.split(f"{blk}.{name}", fused, end - width, end)
                for name, end, width in zip("qkv", ends, widths, strict=True)
            )
        else:
            q, k, v = (
                self._linear(f"{blk}.{name}", x, f"{blk}.attn_{name}", width, name)
                for name, width in zip("qkv", widths, strict=True)
            )
        if self.form.has_head_norms:
            group = config.head_dim if self.form.has_head_norms == "head" else None
            q = builder.normalize(f"{blk}.q_norm", q, self._norm(f"{blk}.attn_q_norm"), group)
            k = builder.normalize(f"{blk}.k_norm", k, self._norm(f"{blk}.attn_k_norm"), group)
        return q, k, v

    def _attend(self, blk: str, layer: int, x: str) -> str:
        config, builder = self.config, self.builder
        q, k, v = self._queries_keys_values(blk, x)
        is_local = layer in config.window_layers
        rotary = self.local_rotary if is_local else self.rotary
        if rotary is not None and layer not in config.rope_free_layers:
            q = builder.rope(f"{blk}.q_rope", q, config.head_dim, rotary)
            k = builder.rope(f"{blk}.k_rope", k, config.head_dim, rotary)
        attended = builder.attention(
            Attention(
                f"{blk}.attention",
                q,
                k,
                v,
                layer,
                config.num_heads,
                config.num_kv_heads,
                config.head_dim,
                config.attention_scale or config.head_dim**-0.5,
                window=config.window if is_local else None,
                softcap=config.attention_softcap,
                is_causal=self.form.is_causal,
            )
        )
        return self._linear(f"{blk}.attn_output", attended, f"{blk}.attn_output", config.width, "o")

    def _feed_forward(self, blk: str, x: str) -> str:
        config, builder, kind = self.config, self.builder, self.form.feed_forward
        if config.num_experts:
            return self._experts(blk, x)
        if kind == "plain":
            up = self._linear(f"{blk}.up", x, f"{blk}.ffn_up", config.ff_width, "up")
            hidden = builder.activate(f"{blk}.activated", up, self.activation)
        else:
            if kind == "fused":
                both = self._linear(f"{blk}.gate_up", x, f"{blk}.ffn_up", 2 * config.ff_width, "up")
                gate = builder.split(f"{blk}.gate", both, 0, config.ff_width)
                up = builder.split(f"{blk}.up", both, config.ff_width, 2 * config.ff_width)
            else:
                gate = self._linear(f"{blk}.gate", x, f"{blk}.ffn_gate", config.ff_width, "gate")
                up = self._linear(f"{blk}.up", x, f"{blk}.ffn_up", config.ff_width, "up")
            hidden = builder.gated_activation(f"{blk}.gated", gate, up, self.activation)
        return self._linear(f"{blk}.ffn_down", hidden, f"{blk}.ffn_down", config.width, "down")

    def _experts(self, blk: str, x: str) -> str:
        config, builder = self.config, self.builder
        router = builder.linear(f"{blk}.router", x, f"{blk}.ffn_gate_inp.weight", config.num_experts)
        op = MixtureOfExperts(
            f"{blk}.experts",
            x,
            router,
            f"{blk}.ffn_gate_exps.weight",
            f"{blk}.ffn_up_exps.weight",
            f"{blk}.ffn_down_exps.weight",
            config.num_chosen_experts,
            config.has_normalized_experts,
            self.activation,
        )
        return builder.mixture_of_experts(op, config.num_experts, config.ff_width)
