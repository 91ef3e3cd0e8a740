"""Qwen2 and Qwen2.5: biases on query, key and value."""

from __future__ import annotations

from subsecond.models.families.family import Family, Form
from subsecond.models.families.hf_type import HfType

# Qwen2 technical report, arXiv 2407.10671.
FAMILY = Family(
    names=("qwen2",),
    hf_types=(HfType("qwen2", "Qwen2ForCausalLM", has_switched_windows=True, window_start=28),),
    form=Form(biases=frozenset({"q", "k", "v"})),
)
