"""Rotary factors that GGUF files hold as tensors, as numbers of a configuration, which config.json holds instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.models.config import ModelConfig, RopeScaling
from subsecond.models.rope import LONG_FACTORS, SHORT_FACTORS, llama3_divisors

LLAMA3_FACTORS = "rope_freqs.weight"
NAMES = frozenset({LLAMA3_FACTORS, LONG_FACTORS, SHORT_FACTORS})
_LOW, _HIGH = 1.0, 4.0  # turns over the original context between which frequencies are scaled in part


def with_factors(config: ModelConfig, factors: Mapping[str, NDArray[np.float32]]) -> ModelConfig:
    """The configuration with these factors [dims / 2] by the names of their tensors as its numbers.

    Those of Llama 3.1 follow from four numbers, of which all models have two in common; UnsupportedError where the
    other two do not explain the factors.
    """
    if LLAMA3_FACTORS in factors:
        return replace(config, rope_scaling=_find_llama3(config, factors[LLAMA3_FACTORS]))
    if not factors:
        return config
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "longrope" or len(factors) != 2:
        raise FormatError("a model with factors of rotary positions needs those for short and those for long contexts")
    short, long = (tuple(map(float, factors[name])) for name in (SHORT_FACTORS, LONG_FACTORS))
    return replace(config, rope_scaling=replace(scaling, short_factors=short, long_factors=long))


def factor_tensors(config: ModelConfig) -> tuple[ModelConfig, dict[str, NDArray[np.float32]]]:
    """The inverse: the configuration that a GGUF file says, and the factors that it has as tensors."""
    scaling = config.rope_scaling
    if scaling is None:
        return config, {}
    if scaling.kind == "llama3":
        divisors = np.array(llama3_divisors(config.rope_theta, config.rope_dims, scaling), np.float32)
        return replace(config, rope_scaling=None), {LLAMA3_FACTORS: divisors}
    if scaling.kind == "longrope" and scaling.short_factors and scaling.long_factors:
        plain = replace(scaling, short_factors=(), long_factors=())
        tensors = {SHORT_FACTORS: scaling.short_factors, LONG_FACTORS: scaling.long_factors}
        return replace(config, rope_scaling=plain), {name: np.array(each, np.float32) for name, each in tensors.items()}
    return config, {}


def _find_llama3(config: ModelConfig, divisors: NDArray[np.float32]) -> RopeScaling:
    if divisors.shape != (config.rope_dims // 2,) or not np.isfinite(divisors).all():
        raise FormatError(f"{LLAMA3_FACTORS} must hold {config.rope_dims // 2} numbers")
    factor = float(divisors.max())
    for original in _contexts(config, divisors.tolist(), factor):
        scaling = RopeScaling("llama3", factor, original, _LOW, _HIGH)
        wanted = llama3_divisors(config.rope_theta, config.rope_dims, scaling)
        if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(divisors.tolist(), wanted, strict=True)):
            return scaling
    raise UnsupportedError(
        f"the factors of rotary positions in {LLAMA3_FACTORS} are none that config.json can say (those of Llama 3.1, "
        "with low_freq_factor 1 and high_freq_factor 4)"
    )


def _contexts(config: ModelConfig, divisors: list[float], factor: float) -> list[int]:
    """The original contexts that would explain the divisors, by pairs whose frequency is scaled in part.

    There 1 / divisor = (1 - s) / factor + s, with s = (context / wavelength - low) / (high - low). Without such a pair,
    every context between the pairs that are scaled and those that are not means the same.
    """
    found, least = [], 2.0
    for pair, divisor in enumerate(divisors):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * pair / config.rope_dims)
        if 1.0 + 1e-3 < divisor < factor * (1 - 1e-3):
            share = (1 / divisor - 1 / factor) / (1 - 1 / factor)
            found.append(round(wavelength * (share * (_HIGH - _LOW) + _LOW)))
        elif divisor <= 1.0 + 1e-3:
            least = max(least, wavelength * _HIGH)
    return found or [max(8192, math.ceil(least)), math.ceil(least)]
