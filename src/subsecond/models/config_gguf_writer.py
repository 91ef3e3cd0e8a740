"""The metadata of a GGUF file for a model: the inverse of `config_gguf`, without its vocabulary.

What it gives is read back before it counts, so that a configuration that the keys cannot say is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.gguf_writer import Value
from subsecond.models.config import ModelConfig, RopeScaling
from subsecond.models.config_gguf import POOLING, config_from_gguf
from subsecond.models.families.family import Family
from subsecond.models.families.registry import find_family
from subsecond.models.rope import magnitude_of


def gguf_metadata(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Value]:
    """The keys of a model whose tensors have these shapes, those with factors of rotary positions included.

    UnsupportedError where the keys have no place for a field of the configuration.
    """
    family = find_family(config.family)
    metadata: dict[str, Value] = {"general.architecture": config.family, "general.name": config.name}
    metadata |= {f"{config.family}.{name}": value for name, value in _fields(config, family).items()}
    differing = _differing(metadata, config, shapes)
    if differing and config.window:  # the layers with a window are not those of the family's rule
        flags = [layer in config.window_layers for layer in range(config.num_layers)]
        metadata[f"{config.family}.attention.sliding_window_pattern"] = flags
        differing = _differing(metadata, config, shapes)
    if differing:
        raise UnsupportedError(
            f"a model of family {config.family!r} with this configuration cannot be written as GGUF, which has no keys "
            f"for {'; '.join(differing)[:500]}"
        )
    return metadata


def _differing(metadata: Mapping[str, object], config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The fields in which the configuration that is read from the metadata differs."""
    try:
        found = config_from_gguf(metadata, shapes)
    except (FormatError, UnsupportedError) as error:
        return [str(error)]
    given, wanted = (asdict(replace(each, attention_scale=_scale_of(each))) for each in (found, config))
    return [f"{name} = {wanted[name]!r}" for name in wanted if not _is_same(given[name], wanted[name])]


def _scale_of(config: ModelConfig) -> float:
    return config.attention_scale or config.head_dim**-0.5


def _is_same(left: object, right: object) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return all(_is_same(left[name], right[name]) for name in right)
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-6)
    return left == right


def _fields(config: ModelConfig, family: Family) -> dict[str, Value]:
    epsilon = "layer_norm_epsilon" if family.form.norm == "layer" else "layer_norm_rms_epsilon"
    fields: dict[str, Value] = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.width,
        "feed_forward_length": config.ff_width,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.{epsilon}": float(config.norm_eps),
        "vocab_size": config.vocab_size,
    }
    if family.form.positions == "rotary":
        fields |= {"rope.dimension_count": config.rope_dims, "rope.freq_base": float(config.rope_theta)}
        if config.local_rope_theta is not None:
            fields["rope.freq_base_swa"] = float(config.local_rope_theta)
        if config.rope_scaling is not None:
            fields |= _scaling(config.rope_scaling)
    if config.window or "window" in family.gguf_defaults:
        fields["attention.sliding_window"] = config.window or 0
    optional = {
        "attention.scale": config.attention_scale,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }
    fields |= {name: float(value) for name, value in optional.items() if value is not None}
    if config.num_experts:
        fields |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_chosen_experts,
            "expert_feed_forward_length": config.ff_width,
            "expert_weights_norm": config.has_normalized_experts,
        }
    if not family.form.is_causal:
        fields["attention.causal"] = False
    if config.pooling is not None:
        fields["pooling_type"] = next(number for number, name in POOLING.items() if name == config.pooling)
    return fields


def _scaling(scaling: RopeScaling) -> dict[str, Value]:
    """How positions are scaled; factors of longrope are tensors."""
    if scaling.kind == "llama3":
        raise UnsupportedError("the factors of scaled positions are not tensors yet")
    fields: dict[str, Value] = {
        "rope.scaling.original_context_length": scaling.original_context,
        "rope.scaling.factor": float(scaling.factor),
    }
    if scaling.kind != "longrope":
        fields["rope.scaling.type"] = scaling.kind
    if scaling.kind == "yarn":
        fields |= {
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
    if scaling.attention_factor is not None:
        derived = magnitude_of(replace(scaling, attention_factor=None)) if scaling.kind == "yarn" else 1.0
        fields["rope.scaling.attn_factor"] = float(scaling.attention_factor / derived)
    return fields
