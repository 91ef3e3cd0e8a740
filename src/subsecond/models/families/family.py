"""What a model family is: data that says which form its graph has and how its files name things."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from subsecond.graph.ops import Activation
from subsecond.models.config import ModelConfig, Pairing
from subsecond.models.families.hf_type import HfType


@dataclass(frozen=True, slots=True)
class Form:
    """The form of the layers. A model file that lacks a weight of its form is refused, and one with more too.

    norm             of all layers: "rms", or "layer" with a bias
    norms            where they stand: "before" each part of a layer (x + f(norm(x))), "after" it (x + norm(f(x))),
                     "around" it (both), or after the "sum" (norm(x + f(x)), as in the first transformers)
    has_fused_qkv    query, key and value are one weight, in this order
    has_head_norms   queries and keys are normalized before they are rotated: "head" by head, or over the whole "row"
    feed_forward     "gated": down(activation(gate) * up); "fused": the same with gate and up in one weight, in this
                     order; "plain": down(activation(up)). With experts in the configuration, each expert is "gated"
    biases           linears that have one ("q", "k", "v", "qkv", "o", "gate", "up", "down"); None: those of the file
    positions        "rotary", or "learned": a table whose rows are added to the embedding
    is_causal        False for encoders, which see the whole text
    """

    norm: Literal["rms", "layer"] = "rms"
    norms: Literal["before", "after", "around", "sum"] = "before"
    has_fused_qkv: bool = False
    has_head_norms: Literal["head", "row"] | None = None
    feed_forward: Literal["gated", "fused", "plain"] = "gated"
    activation: Activation = "silu"
    biases: frozenset[str] | None = frozenset()
    positions: Literal["rotary", "learned"] = "rotary"
    is_causal: bool = True


def window_in_all_layers(config: ModelConfig) -> ModelConfig:
    """Completes a configuration that has a window and does not say where: every layer has it."""
    if config.window and not config.window_layers:
        return replace(config, window_layers=tuple(range(config.num_layers)))
    return config


@dataclass(frozen=True, slots=True)
class Family:
    """A model family. `names` are architecture names of GGUF files, the first is the one in configurations.

    hf_types       every `model_type` in a config.json
    gguf_pairing   order of the channels of a head in GGUF files
    gguf_defaults  fields of the configuration for GGUF files that lack their keys; a rotary family without a
                   `rope_theta` here has none to fall back on, and such a file is refused
    gguf_ignored   keys that mean nothing in GGUF files of this family, without the architecture in front
    has_gguf_merges_by_id    the ids of SentencePiece tokens order their merges in GGUF files; the scores do not
    complete       fills in what files leave to the code that reads them
    hf_tensors     tensor names of Hugging Face checkpoints by ours, where they differ from `hf_names.STANDARD`
    hf_prefixes    what these names may have in front, beside what those of every family may
    hf_unused      patterns of tensors of Hugging Face checkpoints that the arithmetic does not need, without prefix
    has_unit_norms norms of Hugging Face checkpoints are stored less one
    has_transposed_linears   linears of Hugging Face checkpoints are stored [in, out]
    exceeds_half   activations of its models become larger than float16 holds
    """

    names: tuple[str, ...]
    hf_types: tuple[HfType, ...]
    form: Form = Form()
    gguf_pairing: Pairing = "half"
    gguf_defaults: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({"rope_theta": 10000.0}))
    gguf_ignored: frozenset[str] = frozenset()
    has_gguf_merges_by_id: bool = False
    complete: Callable[[ModelConfig], ModelConfig] = lambda config: config
    hf_tensors: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    hf_prefixes: tuple[str, ...] = ()
    hf_unused: tuple[str, ...] = ()
    has_unit_norms: bool = False
    has_transposed_linears: bool = False
    exceeds_half: bool = False

    def find_hf_type(self, name: str) -> HfType:
        """The type of that name, which must be one of the family."""
        return next(each for each in self.hf_types if each.name == name)
