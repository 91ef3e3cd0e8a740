"""What a `model_type` of config.json means where types differ, as data; reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class HfType:
    """One `model_type`. Where files leave something out, it is what transformers takes (its configuration_*.py).

    name                   as in config.json
    model_class            what transformers calls its class; None for types that are only read
    architecture           that of the same model in GGUF files; None: the first of the family
    text_type              the type of the section `text_config`, which alone is read of a model for text and images
    defaults               values of fields that files may leave out; a null in a file stands above them
    field_names            what files call a field, by its usual name
    ignored                fields that mean nothing in files of this type
    ff_ratio               width of the feed-forward part in widths of the model, for files that do not say it
    expert_width           the field with the width of an expert; None for types without experts
    has_score_scalar       scores are divided by the root of `query_pre_attn_scalar`
    has_switched_windows   windows count only with `use_sliding_window`
    window_start           the first layer with a window, where neither `layer_types` nor `max_window_layers` says it
    window_period          the last of so many layers has no window, the others do; as above, with
                           `sliding_window_pattern`. Without either number, every layer has one
    rope_free_period       the last of so many layers does not rotate, where neither `no_rope_layers` nor
                           `no_rope_layer_interval` says it; windows are in these layers. None: all layers rotate
    local_rope_theta       rotary base of layers with a window, for files that do not say it; None: that of all layers
    original_context       context before its growth by scaled positions, for files that do not say it; None: all of it
    rope_kinds             rules of scaled positions, by other names that files have for them
    """

    name: str
    model_class: str | None = None
    architecture: str | None = None
    text_type: str | None = None
    defaults: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    field_names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    ignored: frozenset[str] = frozenset()
    ff_ratio: int | None = None
    expert_width: str | None = None
    has_score_scalar: bool = False
    has_switched_windows: bool = False
    window_start: int | None = None
    window_period: int | None = None
    rope_free_period: int | None = None
    local_rope_theta: float | None = None
    original_context: int | None = None
    rope_kinds: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
