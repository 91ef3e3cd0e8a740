"""The configuration of a model from the metadata of its GGUF file; features without a graph here are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import read_field, read_int, shorten
from subsecond.models.config import INT_LIMITS, MAX_LAYERS, MAX_NAME_CHARS, ModelConfig, Pooling, RopeScaling
from subsecond.models.families.family import Family
from subsecond.models.families.registry import find_family
from subsecond.models.rope import magnitude_of

_WHERE = "GGUF metadata"
POOLING: Mapping[int, Pooling | None] = {0: None, 1: "mean", 2: "first", 3: "last"}


def config_from_gguf(metadata: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """The configuration that a GGUF file's metadata and the shape of its embedding table give.

    A value that is missing or out of range is a FormatError; an architecture or a feature that would change the
    arithmetic and that no graph here has is an UnsupportedError.
    """
    architecture = read_field(metadata, "general.architecture", str, _WHERE)
    family = find_family(architecture)
    config = family.complete(_Reader(metadata, architecture, family).read(shapes))
    if config.window and config.window >= config.context_length and config.local_rope_theta is None:
        return replace(config, window=None, window_layers=())  # it never ends
    return config


class _Reader:
    """Reads the keys of one architecture."""

    def __init__(self, metadata: Mapping[str, object], architecture: str, family: Family) -> None:
        self.metadata = metadata
        self.architecture = architecture
        self.family = family

    def read(self, shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
        """The configuration, before the family completes it."""
        family = self.family
        self.refuse_unsupported()
        width = self.integer("embedding_length", "width")
        num_heads = self.integer("attention.head_count", "num_heads")
        head_dim = self.head_dim(width, num_heads)
        has_rope = family.form.positions == "rotary"
        name = self.metadata.get("general.name")
        epsilon = "layer_norm_epsilon" if family.form.norm == "layer" else "layer_norm_rms_epsilon"
        context_length = self.integer("context_length", "context_length")
        num_experts = self.integer("expert_count", "num_experts", 0)
        num_layers = self.integer("block_count", "num_layers")
        window, window_layers = self.windows(num_layers)
        return ModelConfig(
            family=self.architecture,
            name=name[:MAX_NAME_CHARS] if isinstance(name, str) else self.architecture,
            num_layers=num_layers,
            width=width,
            ff_width=self.ff_width(num_experts),
            num_heads=num_heads,
            num_kv_heads=self.integer("attention.head_count_kv", "num_kv_heads", num_heads),
            head_dim=head_dim,
            vocab_size=self.vocab_size(shapes),
            context_length=context_length,
            norm_eps=self.number(f"attention.{epsilon}"),
            rope_theta=self.rope_theta() if has_rope else 10000.0,
            rope_dims=self.integer("rope.dimension_count", "rope_dims", head_dim) if has_rope else 0,
            rope_pairing=family.gguf_pairing,
            rope_scaling=self.rope_scaling(context_length, shapes) if has_rope else None,
            local_rope_theta=self.optional(
                self.first_of("rope.freq_base_swa", "rope.local.freq_base"), "local_rope_theta"
            ),
            window=window,
            window_layers=window_layers,
            attention_scale=self.optional("attention.scale", "attention_scale"),
            attention_softcap=self.optional("attn_logit_softcapping", "attention_softcap"),
            logit_softcap=self.optional("final_logit_softcapping", "logit_softcap"),
            num_experts=num_experts,
            num_chosen_experts=self.integer("expert_used_count", "num_chosen_experts", 0) if num_experts else 0,
            has_normalized_experts=self.flag("expert_weights_norm", True),
            pooling=POOLING[self.choice("pooling_type", POOLING)],
            num_token_types=self.num_token_types(shapes),
        )

    def key(self, name: str) -> str:
        """The full key of a field of this architecture."""
        return f"{self.architecture}.{name}"

    def has(self, name: str) -> bool:
        """Whether the file has the field, and it counts in this family."""
        return self.key(name) in self.metadata and name not in self.family.gguf_ignored

    def first_of(self, *names: str) -> str:
        """The first name that the file has, of names for the same; without any, the first of all."""
        return next(filter(self.has, names), names[0])

    def integer(self, name: str, field: str, default: int | None = None, *, can_be_zero: bool = False) -> int:
        """An integer in the limits of a configuration's field, or zero where that says that there is none."""
        if default is not None and not self.has(name):
            return default
        low, high = INT_LIMITS[field]
        return read_int(self.metadata, self.key(name), _WHERE, 0 if can_be_zero else low, high)

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        if default is not None and not self.has(name):
            return default
        return read_field(self.metadata, self.key(name), float, _WHERE)

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        return read_field(self.metadata, self.key(name), bool, _WHERE) if self.has(name) else default

    def optional(self, name: str, field: str) -> float | None:
        """The number of a configuration's field: the family's where it is missing, None for zero."""
        return (self.number(name) or None) if self.has(name) else self.family.gguf_defaults.get(field)

    def choice(self, name: str, allowed: Mapping[Any, object]) -> Any:
        """A value that must be one of `allowed`; the first where it is missing."""
        given = self.metadata.get(self.key(name), next(iter(allowed)))
        if not isinstance(given, int | str) or given not in allowed:
            raise UnsupportedError(
                f"{_WHERE}: {self.key(name)} is {shorten(given)}; supported are {', '.join(map(str, allowed))}"
            )
        return given

    def head_dim(self, width: int, num_heads: int) -> int:
        """Channels of a head, the same for keys and values."""
        key_length, value_length = "attention.key_length", "attention.value_length"
        if not self.has(key_length) and width % num_heads:
            raise FormatError(
                f"{_WHERE}: embedding_length {width} is no multiple of head_count {num_heads}, "
                f"and {self.key(key_length)!r}, which would give the width of a head, is missing"
            )
        head_dim = self.integer(key_length, "head_dim", width // num_heads)
        if self.integer(value_length, "head_dim", head_dim) != head_dim:
            raise UnsupportedError(
                f"the heads of this model have {head_dim} key channels and "
                f"{self.metadata[self.key(value_length)]} value channels; only equal numbers are supported"
            )
        return head_dim

    def ff_width(self, num_experts: int) -> int:
        """Width of the feed-forward part, or of one expert."""
        name = "expert_feed_forward_length"
        if num_experts and self.has(name):
            return self.integer(name, "ff_width")
        return self.integer("feed_forward_length", "ff_width")

    def vocab_size(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Rows of the embedding table."""
        shape = shapes.get("token_embd.weight")
        if shape is None or len(shape) != 2:
            raise FormatError(f"'token_embd.weight' has shape {shape}; a table [vocabulary, width] is needed")
        given = self.integer("vocab_size", "vocab_size", shape[0])
        if given != shape[0]:
            raise FormatError(f"{_WHERE}: vocab_size is {given}, but 'token_embd.weight' has {shape[0]} rows")
        return shape[0]

    def windows(self, num_layers: int) -> tuple[int | None, tuple[int, ...]]:
        """The window, and the layers that the file names for it; none where it leaves that to the family.

        The pattern is a flag for each layer, or a number n: the last of n layers has no window.
        """
        default = int(self.family.gguf_defaults.get("window", 0))
        window = self.integer("attention.sliding_window", "window", default, can_be_zero=True) or None
        name = "attention.sliding_window_pattern"
        if not self.has(name):
            return window, ()
        given = self.metadata[self.key(name)]
        if isinstance(given, list):
            if len(given) != num_layers or any(type(each) is not bool for each in given):
                raise FormatError(f"{_WHERE}: {self.key(name)} must be {num_layers} flags, one for each layer")
            layers = tuple(layer for layer, is_local in enumerate(given) if is_local)
        else:
            period = read_int(self.metadata, self.key(name), _WHERE, 1, MAX_LAYERS)
            layers = tuple(layer for layer in range(num_layers) if (layer + 1) % period)
        return (window if layers else None), layers

    def rope_theta(self) -> float:
        """The rotary base, in files with two of them that of the layers without a window."""
        return self.number(
            self.first_of("rope.freq_base", "rope.global.freq_base"), self.family.gguf_defaults.get("rope_theta")
        )

    def num_token_types(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Rows of the table of token types, 0 where there is none."""
        shape = shapes.get("token_types.weight", (0,))
        return shape[0] if len(shape) in (1, 2) else 0

    def rope_scaling(self, context_length: int, shapes: Mapping[str, tuple[int, ...]]) -> RopeScaling | None:
        """How positions are scaled; the factors of longrope stay in the file, as tensors."""
        has_factors = "rope_factors_long.weight" in shapes
        kinds = {"none": "", "linear": "linear", "yarn": "yarn", "longrope": "longrope"}
        kind = kinds[self.choice("rope.scaling.type", kinds)]
        original = self.integer("rope.scaling.original_context_length", "context_length", context_length)
        if has_factors:
            kind, factor = "longrope", context_length / original
        elif kind == "":
            kind, factor = "linear", self.number("rope.scale_linear", 1.0) or 1.0
            if factor == 1.0:
                return None
        else:
            factor = self.number(self.first_of("rope.scaling.factor", "rope.scale_linear")) or 1.0
        magnitude = self.optional("rope.scaling.attn_factor", "attention_factor")
        if magnitude is not None and kind == "yarn":
            # files give what multiplies the factor that follows from the scale
            base = RopeScaling("yarn", factor, original)
            magnitude = magnitude * magnitude_of(base)
        return RopeScaling(
            kind=kind,  # type: ignore[arg-type]
            factor=factor,
            original_context=original,
            beta_fast=self.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self.number("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=magnitude,
        )

    def refuse_unsupported(self) -> None:
        """Refuse what would change the answer of the graph; ignoring it would give a wrong model without a word."""
        # Key, values that mean "not used", and what the key is about.
        features: tuple[tuple[str, tuple[object, ...], str], ...] = (
            ("attention.causal", (self.family.form.is_causal,), "attention in another direction"),
            ("attention.clamp_kqv", (0.0,), "clamped attention inputs"),
            ("attention.max_alibi_bias", (0.0,), "positions by attention bias"),
            ("use_parallel_residual", (False,), "parallel residuals"),
            ("logit_scale", (0.0, 1.0), "scaled logits"),
            ("residual_scale", (0.0, 1.0), "scaled residuals"),
            ("embedding_scale", (0.0, 1.0), "its own scale of embeddings"),
            ("expert_shared_count", (0,), "shared experts"),
            ("expert_gating_func", (0, 1), "experts chosen by another function than softmax"),
            ("expert_weights_scale", (0.0, 1.0), "scaled experts"),
            ("rope.scaling.yarn_log_multiplier", (0.0,), "its own magnitude of scaled positions"),
        )
        for name, unused, feature in features:
            given = self.metadata.get(self.key(name))
            if given is not None and given not in unused:
                raise UnsupportedError(
                    f"this model uses {feature} ({self.key(name)} = {shorten(given)}), which is not supported; "
                    f"supported: {self.architecture} models without it"
                )
