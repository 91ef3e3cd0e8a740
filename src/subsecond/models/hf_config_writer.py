"""The config.json of a model: the inverse of `config_hf`, from a configuration alone or from a config.json to change.

What it writes is read back before it counts, so that a configuration that config.json cannot say is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.models.config import ModelConfig, RopeScaling
from subsecond.models.config_hf import config_from_hf
from subsecond.models.families.family import Family
from subsecond.models.families.hf_type import HfType
from subsecond.models.families.registry import find_family
from subsecond.models.readings import SECTION
from subsecond.models.rope import magnitude_of

Json = dict[str, object]
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_NOT_SHAPE = ("quantization_config", "compression_config", "quantization", SECTION)
"""Sections of a config.json that say how its own weights are stored or run; never taken over."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of the tokens that begin and end a text, for config.json and generation_config.json."""

    bos: int | None
    ends: tuple[int, ...]


def make_config(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], tokens: Tokens) -> Json:
    """The config.json of a model of this configuration whose weights have these shapes.

    Raises UnsupportedError where transformers has no class for the family, or config.json no words for a field.
    """
    config = replace(config, rope_pairing="half")
    family = find_family(config.family)
    differing: list[str] = []
    for hf_type in _fitting_types(config, family):
        content = {
            "architectures": [hf_type.model_class],
            "model_type": hf_type.name,
            **_renamed(_fields(config, family, hf_type, shapes), hf_type),
            "bos_token_id": tokens.bos,
            "eos_token_id": _one_or_all(tokens.ends),
            "pad_token_id": None,  # classes have ids of their own models here
        }
        if config.rope_dims != config.head_dim and family.form.positions == "rotary":
            content["partial_rotary_factor"] = config.rope_dims / config.head_dim
        differing = differing_fields(content, family, config, shapes)
        if not differing:
            return content
    raise _inexpressible(config, differing)


def change_config(
    source: Mapping[str, object],
    before: ModelConfig,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
) -> Json:
    """A config.json from `source`, the one of `before`: with the fields in which `config` differs, and its tables tied
    as these shapes say. `source` is as `read_text_config` gives it. Errors as `make_config`.
    """
    family = find_family(config.family)
    hf_type = family.find_hf_type(str(source["model_type"]))
    content = {name: value for name, value in source.items() if name not in _NOT_SHAPE}
    old, new = (_renamed(_fields(each, family, hf_type, shapes), hf_type) for each in (before, config))
    changed = {name: value for name, value in new.items() if old.get(name) != value}
    content |= {**changed, "tie_word_embeddings": new["tie_word_embeddings"]}
    for name in ("layer_types", "no_rope_layers"):  # lists of one entry for each layer
        if isinstance(content.get(name), list) and before.num_layers != config.num_layers:
            content[name] = new.get(name) or _layer_list(name, config)
    if "layer_types" not in content and before.window_layers != config.window_layers and config.window:
        content["layer_types"] = _layer_list("layer_types", config)
    if hf_type.model_class is not None:
        content.setdefault("architectures", [hf_type.model_class])  # the text part of a model for images has none
    padding = content.get("pad_token_id")
    if isinstance(padding, int) and padding >= config.vocab_size:
        content["pad_token_id"] = None
    differing = differing_fields(content, family, config, shapes)
    if differing:
        raise _inexpressible(config, differing)
    return content


def change_tokens(content: Json, tokens: Tokens) -> None:
    """Name the tokens of another vocabulary in a config.json; one for padding, whose id is not known, there is none."""
    content["bos_token_id"], content["eos_token_id"] = tokens.bos, _one_or_all(tokens.ends)
    content["pad_token_id"] = None  # a class has the id of its own models where this is left out


def differing_fields(
    content: Json, family: Family, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """The fields in which the configuration that is read from `content` differs; the name does not count."""
    try:
        found = config_from_hf(content, family, shapes, config.name, config.pooling)
    except (FormatError, UnsupportedError) as error:
        return [str(error)]
    given, wanted = (_with_defaults(each) for each in (found, config))
    return [f"{name}: {given[name]!r} for {wanted[name]!r}" for name in wanted if not _is_same(given, wanted, name)]


def _with_defaults(config: ModelConfig) -> Json:
    return asdict(replace(config, attention_scale=config.attention_scale or config.head_dim**-0.5))


def _is_same(given: Json, wanted: Json, name: str) -> bool:
    left, right = given[name], wanted[name]
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-6)  # files in GGUF hold numbers as float32
    return left == right


def _inexpressible(config: ModelConfig, differing: list[str]) -> UnsupportedError:
    reason = f"config.json has no words for {'; '.join(differing)[:500]}" if differing else "it has no class for it"
    return UnsupportedError(
        f"a model of family {config.family!r} with this configuration cannot be written for transformers: {reason}"
    )


def _fitting_types(config: ModelConfig, family: Family) -> list[HfType]:
    """The types whose class computes this model, the best first."""
    types = [
        each
        for each in family.hf_types
        if each.model_class is not None
        and (each.architecture or family.names[0]) == config.family
        and (each.expert_width is not None) == bool(config.num_experts)
    ]

    def has_windows(each: HfType) -> bool:
        return each.has_switched_windows or each.window_period is not None or "sliding_window" in each.defaults

    return sorted(types, key=lambda each: has_windows(each) != bool(config.window))


def _fields(config: ModelConfig, family: Family, hf_type: HfType, shapes: Mapping[str, tuple[int, ...]]) -> Json:
    """All fields under their usual names."""
    form = family.form
    width_field = hf_type.expert_width or "intermediate_size"
    content: Json = {
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        width_field: config.ff_width,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "tie_word_embeddings": config.pooling is None and "output.weight" not in shapes,
    }
    if form.norm == "rms":
        content["rms_norm_eps"] = config.norm_eps
    else:
        content["layer_norm_epsilon" if "layer_norm_epsilon" in hf_type.defaults else "layer_norm_eps"] = (
            config.norm_eps
        )
    content["hidden_act"] = _ACTIVATIONS[config.activation or form.activation]
    if hf_type.has_score_scalar:
        content["hidden_activation"] = content["hidden_act"]
        scale = config.attention_scale
        content["query_pre_attn_scalar"] = config.head_dim if scale is None else _integer(scale**-2)
        content["attn_logit_softcapping"] = config.attention_softcap
        content["final_logit_softcapping"] = config.logit_softcap
    if form.biases is None:
        content |= _bias_fields(shapes)
    if hf_type.expert_width is not None:
        content["num_local_experts" if "experts" not in width_field else "num_experts"] = config.num_experts
        content |= {"num_experts_per_tok": config.num_chosen_experts, "norm_topk_prob": config.has_normalized_experts}
    if config.num_token_types:
        content["type_vocab_size"] = config.num_token_types
    content |= _window_fields(config, hf_type)
    if hf_type.rope_free_period is not None:
        content["no_rope_layers"] = _layer_list("no_rope_layers", config)
    if form.positions == "rotary":
        content |= _rope_fields(config, hf_type)
    return content


def _bias_fields(shapes: Mapping[str, tuple[int, ...]]) -> Json:
    """Which linears have a bias, in classes that can have it or not: all of a part of a layer, or none."""
    attention = {name for name in ("q", "k", "v", "output") if f"blk.0.attn_{name}.bias" in shapes}
    forward = {name for name in ("gate", "up", "down") if f"blk.0.ffn_{name}.bias" in shapes}
    if len(attention) not in (0, 4) or len(forward) not in (0, 3):
        raise UnsupportedError(
            f"the linears {', '.join(sorted(attention | forward))} have a bias and others of their kind have none, "
            "for which transformers has no class in this family"
        )
    return {"attention_bias": bool(attention), "mlp_bias": bool(forward)}


def _window_fields(config: ModelConfig, hf_type: HfType) -> Json:
    content: Json = {"sliding_window": config.window}
    if hf_type.has_switched_windows:
        content["use_sliding_window"] = config.window is not None
        if hf_type.window_start is not None:
            content["max_window_layers"] = config.num_layers
    is_everywhere = len(config.window_layers) == config.num_layers
    if config.window and not (is_everywhere and hf_type.window_period is None and not hf_type.has_switched_windows):
        content["layer_types"] = _layer_list("layer_types", config)
    return content


def _layer_list(name: str, config: ModelConfig) -> list[object]:
    layers = range(config.num_layers)
    if name == "no_rope_layers":
        return [0 if layer in config.rope_free_layers else 1 for layer in layers]
    return ["sliding_attention" if layer in config.window_layers else "full_attention" for layer in layers]


def _rope_fields(config: ModelConfig, hf_type: HfType) -> Json:
    content: Json = {"rope_theta": config.rope_theta}
    if hf_type.local_rope_theta is not None:
        content["rope_local_base_freq"] = config.local_rope_theta
    content["rope_scaling"] = None
    scaling = config.rope_scaling
    if scaling is not None:
        content["rope_scaling"] = _SCALINGS[scaling.kind](scaling)
        if hf_type.original_context is not None:
            content["original_max_position_embeddings"] = scaling.original_context
    return content


def _linear(scaling: RopeScaling) -> Json:
    return {"rope_type": "linear", "factor": scaling.factor}


def _llama3(scaling: RopeScaling) -> Json:
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def _yarn(scaling: RopeScaling) -> Json:
    content: Json = {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
    }
    if scaling.attention_factor is not None:
        content["attention_factor"] = magnitude_of(scaling)
    return content


def _longrope(scaling: RopeScaling) -> Json:
    content: Json = {
        "rope_type": "longrope",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
        "short_factor": list(scaling.short_factors),
        "long_factor": list(scaling.long_factors),
    }
    if scaling.attention_factor is not None:
        content["attention_factor"] = scaling.attention_factor
    return content


_SCALINGS: Mapping[str, Callable[[RopeScaling], Json]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _renamed(content: Json, hf_type: HfType) -> Json:
    """The fields under the names of the type."""
    return {hf_type.field_names.get(name, name): value for name, value in content.items()}


def _integer(value: float) -> float:
    return round(value) if abs(value - round(value)) < 1e-6 * abs(value) else value


def _one_or_all(ids: tuple[int, ...]) -> object:
    return (ids[0] if len(ids) == 1 else list(ids)) if ids else None
