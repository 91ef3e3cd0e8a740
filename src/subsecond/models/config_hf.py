"""The configuration of a model from the config.json of its Hugging Face folder; what no graph here has is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import read_field, read_int, read_mapping, shorten
from subsecond.formats.json_file import read_json, read_json_object
from subsecond.models.config import INT_LIMITS, MAX_LAYERS, MAX_NAME_CHARS, ModelConfig, Pooling
from subsecond.models.families.family import Family
from subsecond.models.families.hf_type import HfType
from subsecond.models.families.registry import find_family_by_hf_type
from subsecond.models.readings import SECTION
from subsecond.models.rope_hf import HfRope, read_rope

CONFIG_NAME = "config.json"
_WHERE = "config.json"

_ACTIVATIONS: Mapping[str, Any] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Field, values that mean "not used", and what the field is about.
_UNSUPPORTED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("position_embedding_type", ("absolute",), "positions relative to each other"),
    ("is_decoder", (False,), "an encoder used as a decoder"),
    ("is_encoder_decoder", (False,), "encoder and decoder"),
    ("add_cross_attention", (False,), "attention to another model"),
    ("use_bidirectional_attention", (False,), "attention to later positions"),
    ("scale_attn_weights", (True,), "scores that are not scaled"),
    ("scale_attn_by_inverse_layer_idx", (False,), "scores scaled by layer"),
    ("clip_qkv", (), "clamped attention inputs"),
    ("alibi", (False,), "positions by attention bias"),
    ("use_parallel_residual", (False,), "parallel residuals"),
    ("logit_scale", (1.0,), "scaled logits"),
    ("logits_scaling", (1.0,), "scaled logits"),
    ("residual_multiplier", (1.0,), "scaled residuals"),
    ("embedding_multiplier", (1.0,), "its own scale of embeddings"),
    ("attention_multiplier", (), "its own scale of scores"),
    ("attention_chunk_size", (), "attention within chunks"),
    ("n_shared_experts", (0,), "shared experts"),
    ("shared_expert_intermediate_size", (0,), "shared experts"),
    ("decoder_sparse_step", (1,), "layers with and without experts"),
    ("mlp_only_layers", ([],), "layers with and without experts"),
)


def read_text_config(folder: Path) -> tuple[Mapping[str, object], Family]:
    """The part of a folder's config.json that describes the text model, and its family.

    Fields that say how the weights are stored or read are taken from the whole. Raises FormatError for a damaged
    file and UnsupportedError for an unknown model type.
    """
    whole = read_json_object(folder / CONFIG_NAME)
    model_type = read_field(whole, "model_type", str, _WHERE)
    family = find_family_by_hf_type(model_type)
    text_type = family.find_hf_type(model_type).text_type
    if text_type is None:
        return whole, family
    text = dict(read_mapping(whole, "text_config", _WHERE))
    for name in ("tie_word_embeddings", "quantization_config", SECTION):
        if name in whole:
            text.setdefault(name, whole[name])
    return {**text, "model_type": text_type}, family


def config_from_hf(
    content: Mapping[str, object],
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    pooling: Pooling | None = None,
) -> ModelConfig:
    """The configuration that `content`, from `read_text_config`, and the shapes of the weights give.

    A value that is missing or out of range is a FormatError; a feature that would change the arithmetic and that no
    graph here has is an UnsupportedError.
    """
    hf_type = family.find_hf_type(read_field(content, "model_type", str, _WHERE))
    return _Reader(content, hf_type, family).read(shapes, name, pooling)


def read_pooling(folder: Path) -> Pooling | None:
    """How a sentence-transformers folder makes one vector of a text; None for a folder that does not say."""
    path = find_pooling(folder)
    return None if path is None else _pooling_of(path)


def find_pooling(folder: Path) -> Path | None:
    """Where a sentence-transformers folder says how it pools, by its modules.json; None for a folder without.

    FormatError for a damaged modules.json, UnsupportedError for one with further steps after the model.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
        raise FormatError(f"{path}: it must be a list of modules")
    pooling: Path | None = None
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            name = str(module.get("path", ""))
            if not name or len(name) > 100 or name.startswith(".") or any(mark in name for mark in "/\\:\0"):
                raise FormatError(f"{path}: {shorten(name)} is no name of a folder beside it")
            pooling = folder / name / CONFIG_NAME
        elif kind not in ("Transformer", "Normalize"):
            raise UnsupportedError(
                f"{path}: the module {shorten(kind)} after the model is not supported; "
                "supported are Transformer, Pooling and Normalize"
            )
    return pooling


def _pooling_of(path: Path) -> Pooling:
    content = read_json_object(path)
    known: Mapping[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "first",
        "pooling_mode_lasttoken": "last",
    }
    modes = [key for key, value in content.items() if key.startswith("pooling_mode_") and value is True]
    if content.get("pooling_mode") in ("mean", "cls", "lasttoken"):
        modes = [key for key in known if str(content["pooling_mode"]) in key]
    if len(modes) != 1 or modes[0] not in known:
        raise UnsupportedError(
            f"{path}: rows are pooled by {shorten(modes or content.get('pooling_mode'))}; "
            f"supported is one of {', '.join(known)}"
        )
    return known[modes[0]]


class _Reader:
    """Reads the fields of one type under their usual names."""

    def __init__(self, content: Mapping[str, object], hf_type: HfType, family: Family) -> None:
        whole = {**hf_type.defaults, **content}
        # A null stands above a default: it says that the model has no such thing.
        given = {key: value for key, value in whole.items() if value is not None and key not in hf_type.ignored}
        names = hf_type.field_names.items()
        self.content = {**given, **{usual: given[theirs] for usual, theirs in names if theirs in given}}
        self.hf_type = hf_type
        self.family = family

    def read(self, shapes: Mapping[str, tuple[int, ...]], name: str, pooling: Pooling | None) -> ModelConfig:
        """The whole configuration."""
        self.refuse_unsupported()
        num_layers = self.integer("num_hidden_layers", "num_layers")
        width, num_heads = self.integer("hidden_size", "width"), self.integer("num_attention_heads", "num_heads")
        head_dim = self.head_dim(width, num_heads)
        context_length = self.integer("max_position_embeddings", "context_length")
        num_experts, num_chosen = self.experts()
        has_rope = self.family.form.positions == "rotary"
        rope = read_rope(self.content, self.hf_type, head_dim, context_length) if has_rope else None
        window, window_layers = self.windows(num_layers)
        if window and window >= context_length and (rope is None or rope.local_theta is None):
            window, window_layers = None, ()  # a window as wide as the text is none
        config = ModelConfig(
            family=self.hf_type.architecture or self.family.names[0],
            name=name[:MAX_NAME_CHARS],
            num_layers=num_layers,
            width=width,
            ff_width=self.ff_width(width),
            num_heads=num_heads,
            num_kv_heads=self.integer("num_key_value_heads", "num_kv_heads", num_heads),
            head_dim=head_dim,
            vocab_size=self.vocab_size(shapes),
            context_length=context_length,
            norm_eps=self.norm_eps(),
            window=window,
            window_layers=window_layers,
            attention_scale=self.attention_scale(),
            attention_softcap=self.number("attn_logit_softcapping"),
            logit_softcap=self.number("final_logit_softcapping"),
            activation=self.activation(),
            num_experts=num_experts,
            num_chosen_experts=num_chosen,
            has_normalized_experts=self.truth("norm_topk_prob", True),
            pooling=pooling,
            num_token_types=self.num_token_types(shapes),
        )
        if rope is not None:
            config = _with_rope(config, rope)
        # The file's own word on which layers rotate, also "all of them", stands above the rule of the family.
        return replace(self.family.complete(config), rope_free_layers=self.rope_free_layers(num_layers))

    def integer(self, name: str, field: str, default: int | None = None) -> int:
        """An integer in the limits of a configuration's field."""
        if default is not None and name not in self.content:
            return default
        low, high = INT_LIMITS[field]
        return read_int(self.content, name, _WHERE, low, high)

    def truth(self, name: str, default: bool) -> bool:
        """A truth value."""
        return read_field(self.content, name, bool, _WHERE) if name in self.content else default

    def number(self, name: str) -> float | None:
        """A number, None where it is missing."""
        return read_field(self.content, name, float, _WHERE) if name in self.content else None

    def head_dim(self, width: int, num_heads: int) -> int:
        """Channels of a head."""
        if "head_dim" not in self.content and width % num_heads:
            raise FormatError(
                f"{_WHERE}: hidden_size {width} is no multiple of num_attention_heads {num_heads}, and head_dim is "
                "missing"
            )
        return self.integer("head_dim", "head_dim", width // num_heads)

    def ff_width(self, width: int) -> int:
        """Width of the feed-forward part, or of one expert."""
        ratio = self.hf_type.ff_ratio
        default = None if ratio is None else ratio * width
        return self.integer(self.hf_type.expert_width or "intermediate_size", "ff_width", default)

    def experts(self) -> tuple[int, int]:
        """Number of experts, and of those that a row is given to."""
        if self.hf_type.expert_width is None:
            return 0, 0
        names = ("num_local_experts", "num_experts")
        name = next((each for each in names if each in self.content), names[0])
        return self.integer(name, "num_experts"), self.integer("num_experts_per_tok", "num_chosen_experts")

    def vocab_size(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Rows of the embedding table."""
        shape = shapes.get("token_embd.weight", ())
        if len(shape) != 2:
            raise FormatError(f"the embedding table has shape {shape}; a table [vocabulary, width] is needed")
        given = self.integer("vocab_size", "vocab_size", shape[0])
        if given != shape[0]:
            raise FormatError(f"{_WHERE}: vocab_size is {given}, but the embedding table has {shape[0]} rows")
        return shape[0]

    def num_token_types(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Rows of the table of token types, 0 where there is none."""
        shape = shapes.get("token_types.weight", (0,))
        return shape[0] if shape else 0

    def norm_eps(self) -> float:
        """What norms add to the variance."""
        names = ("layer_norm_eps", "layer_norm_epsilon") if self.family.form.norm == "layer" else ("rms_norm_eps",)
        name = next((each for each in names if each in self.content), names[0])
        return read_field(self.content, name, float, _WHERE)

    def attention_scale(self) -> float | None:
        """What scores are multiplied by, None for the usual."""
        if "query_pre_attn_scalar" not in self.content or not self.hf_type.has_score_scalar:
            return None
        scalar = read_field(self.content, "query_pre_attn_scalar", float, _WHERE)
        if not (math.isfinite(scalar) and scalar > 0):
            raise FormatError(f"{_WHERE}: query_pre_attn_scalar is {scalar}; it must be a positive number")
        return 1 / math.sqrt(scalar)

    def activation(self) -> Any:
        """The activation, None for the one of the family."""
        names = ("hidden_activation", "hidden_act")
        name = next((each for each in names if each in self.content), None)
        if name is None:
            return None
        given = read_field(self.content, name, str, _WHERE)
        if given not in _ACTIVATIONS:
            raise UnsupportedError(
                f"{_WHERE}: {name} is {shorten(given)}, which is not supported; supported are {', '.join(_ACTIVATIONS)}"
            )
        activation = _ACTIVATIONS[given]
        return None if activation == self.family.form.activation else activation

    def windows(self, num_layers: int) -> tuple[int | None, tuple[int, ...]]:
        """The window, and the layers that have it; none for a model whose layers all see everything.

        Without a word on the layers, those of the family have it.
        """
        is_off = self.hf_type.has_switched_windows and not self.truth("use_sliding_window", False)
        if is_off or "sliding_window" not in self.content:
            return None, ()
        window = self.integer("sliding_window", "window")
        layers = self.window_layers(num_layers)
        return (window if layers else None), layers

    def window_layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers with a window, in a model that has one."""
        everywhere = range(num_layers)
        kinds = self.content.get("layer_types")
        if kinds is not None:
            if not isinstance(kinds, list) or len(kinds) != num_layers:
                raise FormatError(f"{_WHERE}: layer_types must be a list of {num_layers} texts")
            unknown = [each for each in kinds if each not in ("full_attention", "sliding_attention")]
            if unknown:
                raise UnsupportedError(f"{_WHERE}: layers of the kind {shorten(unknown[0])} are not supported")
            return tuple(layer for layer in everywhere if kinds[layer] == "sliding_attention")
        if self.hf_type.window_start is not None:
            return tuple(everywhere[self.layer_count("max_window_layers", self.hf_type.window_start) :])
        if self.hf_type.window_period is not None:
            name = "sliding_window_pattern" if "sliding_window_pattern" in self.content else "_sliding_window_pattern"
            period = max(self.layer_count(name, self.hf_type.window_period), 1)
            return tuple(layer for layer in everywhere if (layer + 1) % period)
        return tuple(everywhere) if self.hf_type.rope_free_period is None else self.rope_free_layers(num_layers)

    def layer_count(self, name: str, default: int) -> int:
        """A number of layers."""
        return read_int(self.content, name, _WHERE, 0, MAX_LAYERS) if name in self.content else default

    def rope_free_layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers without rotary positions."""
        if self.hf_type.rope_free_period is None:
            return ()
        given = self.content.get("no_rope_layers")
        if given is None:
            period = max(self.layer_count("no_rope_layer_interval", self.hf_type.rope_free_period), 1)
            return tuple(range(period - 1, num_layers, period))
        if not isinstance(given, list) or not num_layers <= len(given) <= MAX_LAYERS:
            raise FormatError(f"{_WHERE}: no_rope_layers must be a list of at least {num_layers} numbers")
        if any(each not in (0, 1) for each in given):
            raise FormatError(f"{_WHERE}: no_rope_layers has {shorten(given)}; allowed are 0 and 1")
        return tuple(layer for layer in range(num_layers) if not given[layer])

    def refuse_unsupported(self) -> None:
        """Refuse what would change the answer of the graph; ignoring it would give a wrong model without a word."""
        for name, unused, feature in _UNSUPPORTED:
            given = self.content.get(name)
            if given is not None and given not in unused:
                raise UnsupportedError(
                    f"this model uses {feature} ({name} = {shorten(given)}), which is not supported; "
                    f"supported: {self.hf_type.name} models without it"
                )


def _with_rope(config: ModelConfig, rope: HfRope) -> ModelConfig:
    return replace(
        config,
        rope_theta=rope.theta,
        rope_dims=rope.dims,
        rope_scaling=rope.scaling,
        local_rope_theta=rope.local_theta,
    )
