"""The numbers that define a model's shape, checked once; what is built from them is the business of its family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import read_field, read_int, shorten

# Far above any published model, and low enough that a product of two of them is still a size one can reason about.
_INT_LIMITS: Mapping[str, tuple[int, int]] = {
    "num_layers": (1, 1024),
    "width": (1, 2**17),
    "ff_width": (1, 2**20),
    "num_heads": (1, 1024),
    "num_kv_heads": (1, 1024),
    "head_dim": (2, 1024),
    "vocab_size": (1, 2**22),
    "context_length": (1, 2**26),
    "rope_dims": (2, 1024),
}
_FLOAT_LIMITS: Mapping[str, tuple[float, float]] = {"norm_eps": (1e-12, 0.1), "rope_theta": (1.0, 1e12)}
_MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a family needs to build the graph of a decoder. Values out of range are a FormatError.

    `family` is the architecture name of the model file, `rope_dims` the channels of a head that are rotated.
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
    rope_theta: float
    rope_dims: int

    def __post_init__(self) -> None:
        for field, (low, high) in _INT_LIMITS.items():
            read_int({field: getattr(self, field)}, field, "model configuration", low, high)
        for field, (least, most) in _FLOAT_LIMITS.items():
            value = read_field({field: getattr(self, field)}, field, float, "model configuration")
            if not (math.isfinite(value) and least <= value <= most):
                raise FormatError(f"model configuration: {field} is {value}; allowed are {least:g} to {most:g}")
        if self.num_heads % self.num_kv_heads:
            raise FormatError(
                f"model configuration: num_heads is {self.num_heads} and num_kv_heads {self.num_kv_heads}; "
                "the first must be a multiple of the second"
            )
        for field in ("head_dim", "rope_dims"):
            if getattr(self, field) % 2:
                raise FormatError(f"model configuration: {field} is {getattr(self, field)}; it must be even")
        if self.rope_dims > self.head_dim:
            raise FormatError(
                f"model configuration: rope_dims is {self.rope_dims}; at most head_dim = {self.head_dim} is allowed"
            )

    def to_json(self) -> dict[str, object]:
        """The fields by name, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, source: Mapping[str, object]) -> ModelConfig:
        """The inverse of `to_json`; a field that is missing, unknown or of another type is a FormatError."""
        where = "model configuration"
        unknown = sorted(set(source) - {field.name for field in fields(cls)})
        if unknown:
            raise FormatError(f"{where}: unknown fields {shorten(unknown)}; was it written by a newer version?")
        return cls(
            family=read_field(source, "family", str, where),
            name=read_field(source, "name", str, where),
            num_layers=read_field(source, "num_layers", int, where),
            width=read_field(source, "width", int, where),
            ff_width=read_field(source, "ff_width", int, where),
            num_heads=read_field(source, "num_heads", int, where),
            num_kv_heads=read_field(source, "num_kv_heads", int, where),
            head_dim=read_field(source, "head_dim", int, where),
            vocab_size=read_field(source, "vocab_size", int, where),
            context_length=read_field(source, "context_length", int, where),
            norm_eps=read_field(source, "norm_eps", float, where),
            rope_theta=read_field(source, "rope_theta", float, where),
            rope_dims=read_field(source, "rope_dims", int, where),
        )


def config_from_gguf(metadata: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """The configuration that a GGUF file's metadata and the shape of its embedding table give.

    A value that is missing or out of range is a FormatError; a feature that would change the arithmetic and that no
    graph here has (experts, scaled positions, sliding windows) is an UnsupportedError.
    """
    family = read_field(metadata, "general.architecture", str, "GGUF metadata")
    _refuse_unsupported(metadata, family)
    num_heads = _int(metadata, f"{family}.attention.head_count", "num_heads")
    width = _int(metadata, f"{family}.embedding_length", "width")
    head_dim = _head_dim(metadata, family, width, num_heads)
    name = metadata.get("general.name")
    return ModelConfig(
        family=family,
        name=name[:_MAX_NAME_CHARS] if isinstance(name, str) else family,
        num_layers=_int(metadata, f"{family}.block_count", "num_layers"),
        width=width,
        ff_width=_int(metadata, f"{family}.feed_forward_length", "ff_width"),
        num_heads=num_heads,
        num_kv_heads=_int(metadata, f"{family}.attention.head_count_kv", "num_kv_heads", num_heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(metadata, family, shapes),
        context_length=_int(metadata, f"{family}.context_length", "context_length"),
        norm_eps=read_field(metadata, f"{family}.attention.layer_norm_rms_epsilon", float, "GGUF metadata"),
        rope_theta=_float(metadata, f"{family}.rope.freq_base", 10000.0),
        rope_dims=_int(metadata, f"{family}.rope.dimension_count", "rope_dims", head_dim),
    )


def _int(metadata: Mapping[str, object], key: str, field: str, default: int | None = None) -> int:
    if default is not None and key not in metadata:
        return default
    return read_int(metadata, key, "GGUF metadata", *_INT_LIMITS[field])


def _float(metadata: Mapping[str, object], key: str, default: float) -> float:
    return read_field(metadata, key, float, "GGUF metadata") if key in metadata else default


def _head_dim(metadata: Mapping[str, object], family: str, width: int, num_heads: int) -> int:
    key_length, value_length = f"{family}.attention.key_length", f"{family}.attention.value_length"
    if key_length not in metadata and width % num_heads:
        raise FormatError(
            f"GGUF metadata: embedding_length {width} is no multiple of head_count {num_heads}, "
            f"and {key_length!r}, which would give the width of a head, is missing"
        )
    head_dim = _int(metadata, key_length, "head_dim", width // num_heads)
    if _int(metadata, value_length, "head_dim", head_dim) != head_dim:
        raise UnsupportedError(
            f"the heads of this model have {head_dim} key channels and {metadata[value_length]} value channels; "
            "only equal numbers are supported"
        )
    return head_dim


def _vocab_size(metadata: Mapping[str, object], family: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    shape = shapes.get("token_embd.weight")
    if shape is None or len(shape) != 2:
        raise FormatError(f"'token_embd.weight' has shape {shape}; a table [vocabulary, width] is needed")
    given = _int(metadata, f"{family}.vocab_size", "vocab_size", shape[0])
    if given != shape[0]:
        raise FormatError(f"GGUF metadata: vocab_size is {given}, but 'token_embd.weight' has {shape[0]} rows")
    return shape[0]


def _refuse_unsupported(metadata: Mapping[str, object], family: str) -> None:
    """Refuse what would change the answer of the graph; ignoring it would give a wrong model without a word."""
    # Key, values that mean "not used", and what the key is about.
    features: tuple[tuple[str, tuple[object, ...], str], ...] = (
        ("expert_count", (0,), "mixture of experts"),
        ("rope.scaling.type", ("none",), "scaled rotary positions"),
        ("rope.scale_linear", (0.0, 1.0), "scaled rotary positions"),
        ("attention.sliding_window", (0, metadata.get(f"{family}.context_length")), "sliding-window attention"),
        ("attention.causal", (True,), "attention that is not causal"),
        ("attention.clamp_kqv", (0.0,), "clamped attention inputs"),
        ("attention.scale", (0.0,), "its own attention scale"),
        ("logit_scale", (0.0, 1.0), "scaled logits"),
        ("pooling_type", (0,), "pooling (an embedding model)"),
    )
    for key, unused, feature in features:
        given = metadata.get(f"{family}.{key}")
        if given is not None and given not in unused:
            raise UnsupportedError(
                f"this model uses {feature} ({family}.{key} = {shorten(given)}), which is not supported; "
                f"supported: {family} models without it"
            )
