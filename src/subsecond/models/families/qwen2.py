"""Qwen2 and Qwen2.5: biases on query, key and value."""

from __future__ import annotations

from subsecond.models.families.family import Family, Form

# Qwen2 technical report, arXiv 2407.10671.
FAMILY = Family(names=("qwen2",), hf_types=("qwen2",), form=Form(biases=frozenset({"q", "k", "v"})))
