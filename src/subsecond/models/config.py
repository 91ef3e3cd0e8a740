"""The numbers that define a model's shape, checked once; what is built from them is the business of its family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

from subsecond.core.errors import FormatError
from subsecond.formats.fields import read_field, read_int, read_mapping, shorten

_WHERE = "model configuration"
MAX_LAYERS = 1024
MAX_NAME_CHARS = 256
# Far above any published model, and low enough that a product of two of them is still a size one can reason about.
INT_LIMITS: Mapping[str, tuple[int, int]] = {
    "num_layers": (1, MAX_LAYERS),
    "width": (1, 2**17),
    "ff_width": (1, 2**20),
    "num_heads": (1, 1024),
    "num_kv_heads": (1, 1024),
    "head_dim": (2, 1024),
    "vocab_size": (1, 2**22),
    "context_length": (1, 2**26),
    "rope_dims": (2, 1024),
    "window": (1, 2**26),
    "num_experts": (0, 1024),
    "num_chosen_experts": (0, 1024),
    "num_token_types": (0, 1024),
    "original_context": (2, 2**26),
}
_FLOAT_LIMITS: Mapping[str, tuple[float, float]] = {
    "norm_eps": (1e-13, 0.1),
    "rope_theta": (1.001, 1e12),
    "local_rope_theta": (1.001, 1e12),
    "attention_scale": (1e-6, 1e3),
    "attention_softcap": (1e-3, 1e6),
    "logit_softcap": (1e-3, 1e6),
    "embedding_scale": (1e-6, 1e6),
    "factor": (1e-3, 1e6),
    "low_frequency_factor": (1e-3, 1e6),
    "high_frequency_factor": (1e-3, 1e6),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "attention_factor": (1e-3, 1e3),
}

Pairing = Literal["interleaved", "half"]
Pooling = Literal["mean", "first", "last"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary positions reach beyond the context that a model was trained with first.

    kind                 "linear" (Chen et al. 2023, arXiv 2306.15595), "llama3" (Llama 3.1), "yarn" (Peng et al. 2023,
                         arXiv 2309.00071) or "longrope" (Ding et al. 2024, arXiv 2402.13753)
    factor               of the context's growth; original_context is the one before
    low/high_frequency_factor   of llama3; beta_fast, beta_slow of yarn
    attention_factor     multiplies cosines and sines; None for what the kind derives from `factor`
    short_factors, long_factors   divisors of the frequencies of longrope, dims / 2 of each, for contexts up to
                         `original_context` and beyond; empty where the model file has them as tensors
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float
    original_context: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_choice("rope scaling", self.kind, ("linear", "llama3", "yarn", "longrope"))
        _check_int("original_context", self.original_context)
        for name in ("factor", "low_frequency_factor", "high_frequency_factor", "beta_fast", "beta_slow"):
            _check_float(name, getattr(self, name))
        if self.attention_factor is not None:
            _check_float("attention_factor", self.attention_factor)
        if self.kind == "llama3" and self.high_frequency_factor <= self.low_frequency_factor:
            raise FormatError(f"{_WHERE}: high_frequency_factor must be larger than low_frequency_factor")
        for factors in (self.short_factors, self.long_factors):
            if not all(math.isfinite(each) and each > 0 for each in factors):
                raise FormatError(f"{_WHERE}: the factors of longrope must be positive numbers")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a family needs to build the graph of a model. Values out of range are a FormatError.

    family             architecture name, as GGUF files have it
    rope_dims          channels of a head that are rotated; rope_pairing the order of their pairs in the weights
    local_rope_theta   of the layers with a window, where it differs; those have no scaling then
    window             positions that a row of a windowed layer sees; window_layers are those layers
    rope_free_layers   layers without rotary positions
    attention_scale    None for head_dim ** -0.5
    activation         of the feed-forward part; None for the one that is usual in the family
    num_chosen_experts of num_experts, a row (0: no experts); ff_width is then that of one expert
    pooling            of embedding models: how the rows of a text become one vector; None for language models
    """

    family: str
    name: str
    num_layers: int
    width: int
    ff_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_theta: float = 10000.0
    rope_dims: int = 0
    rope_pairing: Pairing = "half"
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    window: int | None = None
    window_layers: tuple[int, ...] = ()
    rope_free_layers: tuple[int, ...] = ()
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    activation: Literal["silu", "gelu", "gelu_tanh"] | None = None
    num_experts: int = 0
    num_chosen_experts: int = 0
    has_normalized_experts: bool = True
    pooling: Pooling | None = None
    num_token_types: int = 0

    def __post_init__(self) -> None:
        optional = ("window", "rope_dims")
        for field in INT_LIMITS:
            value = getattr(self, field, None)
            if value is not None and not (field in optional and value == 0):
                _check_int(field, value)
        for field in _FLOAT_LIMITS:
            value = getattr(self, field, None)
            if value is not None:
                _check_float(field, value)
        _check_choice("rope_pairing", self.rope_pairing, ("interleaved", "half"))
        _check_choice("activation", self.activation, (None, "silu", "gelu", "gelu_tanh"))
        _check_choice("pooling", self.pooling, (None, "mean", "first", "last"))
        self._check_heads()
        self._check_layers()

    def _check_heads(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise FormatError(
                f"{_WHERE}: num_heads is {self.num_heads} and num_kv_heads {self.num_kv_heads}; "
                "the first must be a multiple of the second"
            )
        for field in ("head_dim", "rope_dims"):
            if getattr(self, field) % 2:
                raise FormatError(f"{_WHERE}: {field} is {getattr(self, field)}; it must be even")
        if self.rope_dims > self.head_dim:
            raise FormatError(f"{_WHERE}: rope_dims is {self.rope_dims}; at most head_dim = {self.head_dim} is allowed")
        scaling = self.rope_scaling
        for factors in (scaling.short_factors, scaling.long_factors) if scaling else ():
            if factors and len(factors) != self.rope_dims // 2:
                raise FormatError(f"{_WHERE}: longrope has {len(factors)} factors for {self.rope_dims // 2} pairs")

    def _check_layers(self) -> None:
        for field in ("window_layers", "rope_free_layers"):
            layers = getattr(self, field)
            if any(not 0 <= each < self.num_layers for each in layers) or list(layers) != sorted(set(layers)):
                raise FormatError(f"{_WHERE}: {field} must be ascending layers below {self.num_layers}")
        if self.window_layers and not self.window:
            raise FormatError(f"{_WHERE}: window_layers are given, but no window")
        if self.num_chosen_experts > self.num_experts or (self.num_experts and not self.num_chosen_experts):
            raise FormatError(
                f"{_WHERE}: {self.num_chosen_experts} experts are chosen of {self.num_experts}; "
                "allowed are 1 to all of them"
            )

    def to_json(self) -> dict[str, object]:
        """The fields by name, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, source: Mapping[str, object]) -> ModelConfig:
        """The inverse of `to_json`; a field that is missing, unknown or of another type is a FormatError."""
        _check_known(source, cls)
        values = {name: _read(source, name) for name in (field.name for field in fields(cls)) if name in source}
        scaling = source.get("rope_scaling")
        if scaling is not None:
            section = read_mapping(source, "rope_scaling", _WHERE)
            _check_known(section, RopeScaling)
            known = {field.name for field in fields(RopeScaling)} & set(section)
            for name in ("kind", "factor", "original_context"):
                if name not in known:
                    raise FormatError(f"{_WHERE}: rope_scaling has no field {name!r}")
            values["rope_scaling"] = RopeScaling(**{name: _read(section, name) for name in known})  # type: ignore[arg-type]
        for field in fields(cls)[:11]:  # those without a default
            if field.name not in values:
                raise FormatError(f"{_WHERE}: field {field.name!r} is missing")
        return cls(**values)  # type: ignore[arg-type]


_TEXTS = ("family", "name", "rope_pairing", "activation", "pooling", "kind")
_INT_TUPLES = ("window_layers", "rope_free_layers")
_FLOAT_TUPLES = ("short_factors", "long_factors")
_OPTIONAL = (
    "rope_scaling",
    "local_rope_theta",
    "window",
    "attention_scale",
    "attention_softcap",
    "logit_softcap",
    "activation",
    "pooling",
    "attention_factor",
)


def _read(source: Mapping[str, object], name: str) -> object:
    given = source[name]
    if given is None and name in _OPTIONAL:
        return None
    if name == "rope_scaling":
        return given
    if name in _TEXTS:
        return read_field(source, name, str, _WHERE)
    if name == "has_normalized_experts":
        return read_field(source, name, bool, _WHERE)
    if name in _INT_TUPLES or name in _FLOAT_TUPLES:
        kinds = (int,) if name in _INT_TUPLES else (int, float)
        if not isinstance(given, list | tuple) or len(given) > MAX_LAYERS or any(type(e) not in kinds for e in given):
            raise FormatError(f"{_WHERE}: field {name!r} is {shorten(given)}; it must be a list of numbers")
        return tuple(given) if name in _INT_TUPLES else tuple(float(each) for each in given)
    return read_field(source, name, int if name in INT_LIMITS else float, _WHERE)


def _check_known(source: Mapping[str, object], kind: type[ModelConfig] | type[RopeScaling]) -> None:
    unknown = sorted(set(source) - {field.name for field in fields(kind)})
    if unknown:
        raise FormatError(f"{_WHERE}: unknown fields {shorten(unknown)}; was it written by a newer version?")


def _check_int(name: str, value: int) -> None:
    read_int({name: value}, name, _WHERE, *INT_LIMITS[name])


def _check_float(name: str, value: float) -> None:
    low, high = _FLOAT_LIMITS[name]
    number = read_field({name: value}, name, float, _WHERE)
    if not (math.isfinite(number) and low <= number <= high):
        raise FormatError(f"{_WHERE}: {name} is {number}; allowed are {low:g} to {high:g}")


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        shown = ", ".join(repr(each) for each in allowed if each is not None)
        raise FormatError(f"{_WHERE}: {name} is {shorten(value)}; allowed are {shown}")
