"""Rotary positions as a Hugging Face config.json describes them, in its older and its newer form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import read_field, read_int, read_mapping, shorten
from subsecond.models.config import INT_LIMITS, RopeScaling
from subsecond.models.families.hf_type import HfType
from subsecond.models.rope import magnitude_of

_WHERE = "config.json, rotary positions"
_FULL, _LOCAL = "full_attention", "sliding_attention"
_KINDS = ("default", "linear", "llama3", "yarn", "longrope")
_OLD_KINDS = {"su": "longrope"}  # in files of any type
_KNOWN = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "low_freq_factor",
        "high_freq_factor",
        "mscale",
        "mscale_all_dim",
        "short_factor",
        "long_factor",
        "truncate",
        "finetuned",
    }
)


@dataclass(frozen=True, slots=True)
class HfRope:
    """What a configuration says on rotary positions; `local_theta` is that of layers with a window, None for equal."""

    theta: float
    dims: int
    scaling: RopeScaling | None
    local_theta: float | None


def read_rope(config: Mapping[str, object], hf_type: HfType, head_dim: int, context_length: int) -> HfRope:
    """The rotary positions of a model without nulls in its `config`.

    A value out of range is a FormatError; a kind or a parameter that the graph has no place for, an UnsupportedError.
    """
    section = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = read_mapping(config, section, "config.json") if config.get(section) else {}
    full, local = given, None
    if _FULL in given or _LOCAL in given:
        full, local = (_without_nulls(read_mapping(given, kind, _WHERE)) for kind in (_FULL, _LOCAL))
    full = _without_nulls(full)
    local_theta = hf_type.local_rope_theta
    if local_theta is not None:
        local_theta = _local_theta(config, local or {}, local_theta)
    elif local is not None and local != full:
        raise UnsupportedError(f"rotary positions that differ by kind of layer are not supported for {hf_type.name}")
    for name in full:
        if name not in _KNOWN:
            raise UnsupportedError(f"rotary positions with {shorten(name)} ({section}) are not supported")
    theta = _number(full, "rope_theta", _number(config, "rope_theta", 10000.0))
    share = _number(full, "partial_rotary_factor", _number(config, "partial_rotary_factor", 1.0))
    if not 0 < share <= 1:
        raise FormatError(f"{_WHERE}: partial_rotary_factor is {share}; it must be above 0 and at most 1")
    return HfRope(theta, int(head_dim * share), _scaling(full, config, hf_type, context_length), local_theta)


def _local_theta(config: Mapping[str, object], local: Mapping[str, object], default: float) -> float:
    kind = local.get("rope_type", "default")
    if kind != "default":
        raise UnsupportedError(f"scaled positions ({shorten(kind)}) in layers with a window are not supported")
    return _number(local, "rope_theta", _number(config, "rope_local_base_freq", default))


def _scaling(
    section: Mapping[str, object], config: Mapping[str, object], hf_type: HfType, context_length: int
) -> RopeScaling | None:
    kind = section.get("rope_type", section.get("type", "default"))
    if isinstance(kind, str):
        kind = {**_OLD_KINDS, **hf_type.rope_kinds}.get(kind, kind)
    if kind not in _KINDS:
        raise UnsupportedError(
            f"rotary positions are scaled by the rule {shorten(kind)}, which is not supported; "
            f"supported are {', '.join(_KINDS)}"
        )
    if kind == "default":
        return None
    original = context_length
    if kind != "linear":
        name = "original_max_position_embeddings"
        source = next(
            (each for each in (config, section) if name in each), {name: hf_type.original_context or context_length}
        )
        original = read_int(source, name, _WHERE, *INT_LIMITS["original_context"])
    if kind == "linear":
        return RopeScaling("linear", _number(section, "factor"), original)
    factor = _number(section, "factor", context_length / original)
    if kind == "llama3":
        low, high = _number(section, "low_freq_factor"), _number(section, "high_freq_factor")
        return RopeScaling("llama3", factor, original, low, high)
    if kind == "yarn":
        return _yarn(section, factor, original)
    return RopeScaling(
        "longrope",
        factor,
        original,
        attention_factor=_magnitude(section),
        short_factors=_numbers(section, "short_factor"),
        long_factors=_numbers(section, "long_factor"),
    )


def _yarn(section: Mapping[str, object], factor: float, original: int) -> RopeScaling:
    if section.get("truncate", True) is not True:
        raise UnsupportedError("rotary positions scaled by yarn with truncate = false are not supported")
    magnitude = _magnitude(section)
    above, below = _number(section, "mscale", 0.0), _number(section, "mscale_all_dim", 0.0)
    if magnitude is None and above and below and factor > 1:
        magnitude = (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)
    fast, slow = _number(section, "beta_fast", 0.0) or 32.0, _number(section, "beta_slow", 0.0) or 1.0
    scaling = RopeScaling("yarn", factor, original, beta_fast=fast, beta_slow=slow, attention_factor=magnitude)
    assert magnitude_of(scaling) > 0
    return scaling


def _magnitude(section: Mapping[str, object]) -> float | None:
    return _number(section, "attention_factor") if "attention_factor" in section else None


def _number(source: Mapping[str, object], name: str, default: float | None = None) -> float:
    if default is not None and name not in source:
        return default
    return read_field(source, name, float, _WHERE)


def _numbers(source: Mapping[str, object], name: str) -> tuple[float, ...]:
    given = source.get(name)
    if not isinstance(given, list) or len(given) > 1024 or any(type(each) not in (int, float) for each in given):
        raise FormatError(f"{_WHERE}: {name} is {shorten(given)}; it must be a list of numbers")
    return tuple(map(float, given))


def _without_nulls(section: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in section.items() if value is not None}
