"""SmolLM3: Llama without rotary positions in every fourth layer."""

from __future__ import annotations

from dataclasses import replace

from subsecond.models.config import ModelConfig
from subsecond.models.families.family import Family, Form

_PERIOD = 4  # Yang et al. 2025, arXiv 2501.18795


def _complete(config: ModelConfig) -> ModelConfig:
    if config.rope_free_layers:
        return config
    return replace(config, rope_free_layers=tuple(range(_PERIOD - 1, config.num_layers, _PERIOD)))


FAMILY = Family(
    names=("smollm3",),
    hf_types=("smollm3",),
    form=Form(biases=None),
    gguf_pairing="interleaved",
    complete=_complete,
)
