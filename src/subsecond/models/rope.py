"""Rotary positions of a configuration: the angle that each pair of channels turns by, scaled for long contexts."""

from __future__ import annotations

import math

from subsecond.core.errors import FormatError
from subsecond.graph.ops import Rotary
from subsecond.models.config import ModelConfig, RopeScaling

SHORT_FACTORS = "rope_factors_short.weight"
LONG_FACTORS = "rope_factors_long.weight"


def make_rotary(config: ModelConfig, *, is_local: bool = False, factors: str | None = None) -> Rotary:
    """The rotary embedding of a layer; `is_local` for those with a window and a theta of their own.

    `factors` names a weight that divides the frequencies. The factors of longrope are the long ones as soon as the
    model's context is longer than the original one: they are part of the model, so that no position depends on how
    long a text will become.
    """
    if config.rope_dims == 0:
        raise FormatError(
            f"model configuration: rope_dims is 0 or missing, and {config.family} models have rotary positions; "
            f"it must be an even number up to head_dim = {config.head_dim}"
        )
    has_own_theta = is_local and config.local_rope_theta is not None
    theta = config.local_rope_theta if is_local and config.local_rope_theta is not None else config.rope_theta
    frequencies = [theta ** (-2 * i / config.rope_dims) for i in range(config.rope_dims // 2)]
    scaling = config.rope_scaling
    if scaling is None or has_own_theta:
        return Rotary(tuple(frequencies), config.rope_pairing, factors)
    scaled = _scaled(frequencies, theta, scaling, config)
    return Rotary(tuple(scaled), config.rope_pairing, factors, magnitude_of(scaling))


def is_long(config: ModelConfig) -> bool:
    """Whether the long factors of longrope are the ones to use."""
    return config.rope_scaling is not None and config.context_length > config.rope_scaling.original_context


def llama3_divisors(theta: float, dims: int, scaling: RopeScaling) -> list[float]:
    """What the frequencies of the pairs are divided by, scaled by the rule of Llama 3.1 [dims / 2]."""
    frequencies = [theta ** (-2 * i / dims) for i in range(dims // 2)]
    return [frequency / _llama3(frequency, scaling) for frequency in frequencies]


def _scaled(frequencies: list[float], theta: float, scaling: RopeScaling, config: ModelConfig) -> list[float]:
    if scaling.kind == "linear":
        return [f / scaling.factor for f in frequencies]
    if scaling.kind == "llama3":
        return [_llama3(f, scaling) for f in frequencies]
    if scaling.kind == "yarn":
        return _yarn(frequencies, theta, scaling)
    divisors = scaling.long_factors if is_long(config) else scaling.short_factors
    return [f / d for f, d in zip(frequencies, divisors or (1.0,) * len(frequencies), strict=True)]


def _llama3(frequency: float, scaling: RopeScaling) -> float:
    wavelength = 2 * math.pi / frequency
    low = scaling.original_context / scaling.low_frequency_factor
    high = scaling.original_context / scaling.high_frequency_factor
    if wavelength > low:
        return frequency / scaling.factor
    if wavelength < high:
        return frequency
    smooth = (scaling.original_context / wavelength - scaling.low_frequency_factor) / (
        scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def _yarn(frequencies: list[float], theta: float, scaling: RopeScaling) -> list[float]:
    """Fast pairs stay, slow ones are interpolated, with a ramp between; arXiv 2309.00071, section 3.2."""
    dims = 2 * len(frequencies)

    def pair_of(rotations: float) -> float:
        """Index of the pair that turns this often over the original context."""
        return dims * math.log(scaling.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_of(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_of(scaling.beta_slow)), dims - 1)
    span = high - low if high != low else 0.001
    scaled = []
    for i, frequency in enumerate(frequencies):
        ramp = min(max((i - low) / span, 0.0), 1.0)
        scaled.append(frequency / scaling.factor * ramp + frequency * (1 - ramp))
    return scaled


def magnitude_of(scaling: RopeScaling) -> float:
    """What cosines and sines are multiplied by."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "yarn":
        return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    if scaling.kind == "longrope":
        growth = math.log(scaling.factor) / math.log(scaling.original_context)
        return math.sqrt(1 + growth) if scaling.factor > 1 else 1.0
    return 1.0
