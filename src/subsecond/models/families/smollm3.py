"""SmolLM3: Llama without rotary positions in every fourth layer."""

from __future__ import annotations

from dataclasses import replace

from subsecond.models.config import ModelConfig
from subsecond.models.families.family import Family, Form
from subsecond.models.families.hf_type import HfType

_PERIOD = 4  # Yang et al. 2025, arXiv 2501.18795


def _complete(config: ModelConfig) -> ModelConfig:
    if config.rope_free_layers:
        return config
    return replace(config, rope_free_layers=tuple(range(_PERIOD - 1, config.num_layers, _PERIOD)))


FAMILY = Family(
    names=("smollm3",),
    hf_types=(
        HfType(
            "smollm3",
            "SmolLM3ForCausalLM",
            defaults={"rope_theta": 2e6},
            has_switched_windows=True,
            rope_free_period=_PERIOD,
        ),
    ),
    form=Form(biases=None),
    gguf_pairing="interleaved",
    complete=_complete,
)
