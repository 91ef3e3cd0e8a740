"""Quantized Hugging Face checkpoints: what their configuration allows and where a weight's integers lie.

GPTQ (Frantar et al. 2022, arXiv 2210.17323), AWQ (Lin et al. 2023, arXiv 2306.00978) and compressed-tensors, in the
layouts that their libraries write. Only weights are read: that some of these models round activations too, while they
run, is not imitated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import read_int, read_mapping, shorten
from subsecond.formats.gguf_types import TensorType, dequantize
from subsecond.formats.json_file import read_json_object
from subsecond.formats.safetensors import Safetensors
from subsecond.models.grouped_linear import Codes, Floats, GroupedLinear

_GPTQ_FILE = "quantize_config.json"
_SUPPORTED = (
    "supported are GPTQ (4 bits, formats gptq and gptq_v2), AWQ (4 bits, gemm) and compressed-tensors "
    "(pack-quantized with 4 or 8 bits, int-quantized and naive-quantized with integers of at most 8 bits)"
)
_WHERE = "quantization_config"
# AWQ: nibble i of a word holds output AWQ_ORDER[i] of its eight; this is the inverse.
_AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)

Layout = Literal["gptq", "awq", "packed", "int"]
_PARTS: Mapping[Layout, tuple[frozenset[str], frozenset[str]]] = {
    # the parts that a weight must have, and those that it may have
    "gptq": (frozenset({"qweight", "qzeros", "scales"}), frozenset({"g_idx"})),
    "awq": (frozenset({"qweight", "qzeros", "scales"}), frozenset()),
    "packed": (
        frozenset({"weight_packed", "weight_scale"}),
        frozenset({"weight_zero_point", "weight_shape", "weight_g_idx"}),
    ),
    "int": (frozenset({"weight", "weight_scale"}), frozenset({"weight_zero_point"})),
}
# Of activations that are rounded at run time.
_ACTIVATION_PARTS = frozenset({"input_scale", "input_zero_point"})


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the quantized weights of a checkpoint are stored.

    group_size   inputs of a group, -1 for all; of "packed" and "int" the scales tell it
    zero_shift   what is added to stored zeros
    """

    layout: Layout
    num_bits: int
    group_size: int = -1
    zero_shift: int = 0

    def is_quantized(self, parts: Mapping[str, str]) -> bool:
        """Whether these parts of a module are a quantized weight; others of the checkpoint are plain."""
        marker = {"packed": "weight_packed", "int": "weight_scale"}.get(self.layout, "qweight")
        return marker in parts

    def linear(self, parts: Mapping[str, str], source: Safetensors) -> GroupedLinear:
        """The weight whose `parts`, tensor names by what they are, lie in `source`.

        Raises FormatError where they are not all there or do not fit together.
        """
        parts = {part: name for part, name in parts.items() if part not in _ACTIVATION_PARTS}
        required, optional = _PARTS[self.layout]
        if not required <= set(parts) <= required | optional:
            raise FormatError(
                f"a quantized weight has the parts {', '.join(sorted(parts.values()))}; "
                f"it needs {', '.join(sorted(required))} and may have {', '.join(sorted(optional)) or 'no other'}"
            )
        reader = _PartReader(parts, source)
        if self.layout == "gptq":
            return _gptq(self, reader)
        if self.layout == "awq":
            return _awq(self, reader)
        return _compressed(self, reader)


def read_scheme(content: Mapping[str, object], folder: Path) -> Scheme | None:
    """How a checkpoint with the configuration `content` is quantized; None for one that is not.

    A method, a number of bits or a layout that is not read is an UnsupportedError that names it.
    """
    name = next((each for each in ("quantization_config", "compression_config") if content.get(each)), None)
    if name is None and content.get("quantization"):
        raise _unsupported("the layout of MLX ('quantization' in config.json)")
    if name is None and not (folder / _GPTQ_FILE).is_file():
        return None
    given: Mapping[str, object]
    if name is not None:
        given = read_mapping(content, name, "config.json")
    else:
        given = {"quant_method": "gptq", **read_json_object(folder / _GPTQ_FILE)}
    method = given.get("quant_method")
    if method == "gptq":
        return _gptq_scheme(given)
    if method == "awq":
        return _awq_scheme(given)
    if method == "compressed-tensors":
        return _compressed_scheme(given)
    raise _unsupported(f"its method {shorten(method)}")


def _unsupported(what: str) -> UnsupportedError:
    return UnsupportedError(f"this model is quantized, and {what} is not supported; {_SUPPORTED}")


def _group_size(given: Mapping[str, object]) -> int:
    size = read_int(given, "group_size", _WHERE, -1, 2**20)
    if size != -1 and (size <= 0 or size % 32):
        raise _unsupported(f"its group size {size}, which is no multiple of 32,")
    return size


def _gptq_scheme(given: Mapping[str, object]) -> Scheme:
    if given.get("bits") != 4:
        raise _unsupported(f"GPTQ with {shorten(given.get('bits'))} bits")
    form = given.get("checkpoint_format") or "gptq"
    if given.get("is_marlin_format") or form not in ("gptq", "gptq_v2"):
        raise _unsupported(f"the GPTQ format {'marlin' if given.get('is_marlin_format') else shorten(form)}")
    if given.get("dynamic"):
        raise _unsupported("GPTQ with other settings for some layers (dynamic)")
    return Scheme("gptq", 4, _group_size(given), zero_shift=1 if form == "gptq" else 0)


def _awq_scheme(given: Mapping[str, object]) -> Scheme:
    if given.get("bits") != 4:
        raise _unsupported(f"AWQ with {shorten(given.get('bits'))} bits")
    version = str(given.get("version", "gemm")).lower()
    if version != "gemm":
        raise _unsupported(f"the AWQ version {shorten(version)}")
    if given.get("zero_point", True) is not True:
        raise _unsupported("AWQ without zero points")
    return Scheme("awq", 4, _group_size(given))


def _compressed_scheme(given: Mapping[str, object]) -> Scheme | None:
    for name, feature in (("kv_cache_scheme", "keys and values"), ("transform_config", "transformed weights")):
        if given.get(name):
            raise _unsupported(f"compressed-tensors with {feature} ({name})")
    sparsity = given.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise _unsupported(f"the compressed-tensors sparsity format {shorten(sparsity.get('format'))}")
    form = given.get("format")
    if form == "dense":
        return None
    layouts: Mapping[object, Layout] = {"pack-quantized": "packed", "int-quantized": "int", "naive-quantized": "int"}
    if form not in layouts:
        raise _unsupported(f"the compressed-tensors format {shorten(form)}")
    kinds = set()
    for group in read_mapping(given, "config_groups", _WHERE).values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
            raise FormatError(f"{_WHERE}: a group of config_groups has no 'weights'")
        if group.get("format") not in (None, form):
            raise _unsupported(f"compressed-tensors with formats that differ ({shorten(group.get('format'))})")
        kinds.add((weights.get("type", "int"), weights.get("num_bits"), weights.get("strategy")))
    num_bits = {bits for _, bits, _ in kinds}
    allowed = (4, 8) if layouts[form] == "packed" else (8, 7, 6, 5, 4)
    strategies = ("group", "channel", "tensor")
    if len(num_bits) != 1 or any(t != "int" or b not in allowed or s not in strategies for t, b, s in kinds):
        shown = "; ".join(f"{t} of {b} bits by {s}" for t, b, s in sorted(kinds, key=str))
        raise _unsupported(f"the compressed-tensors format {form} with {shown or 'no groups'}")
    (bits,) = num_bits
    return Scheme(layouts[form], int(str(bits)) if layouts[form] == "packed" else 8)


class _PartReader:
    """Reads the parts of one weight."""

    def __init__(self, parts: Mapping[str, str], source: Safetensors) -> None:
        self._parts = parts
        self._source = source

    def __contains__(self, part: str) -> bool:
        return part in self._parts and 0 not in self.shape(part)

    def shape(self, part: str) -> tuple[int, ...]:
        """Shape of a part."""
        return self._source.tensors[self._parts[part]].shape

    def dtype(self, part: str) -> str:
        """Type of a part."""
        return self._source.tensors[self._parts[part]].dtype

    def check(self, part: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """FormatError unless the part has one of these types, and this shape."""
        if self.dtype(part) not in dtypes or self.shape(part) != shape:
            raise FormatError(
                f"tensor {self._parts[part]!r} is {self.dtype(part)} {self.shape(part)}; "
                f"the parts of its weight need {' or '.join(dtypes)} {shape}"
            )

    def integers(self, part: str) -> NDArray[np.signedinteger]:
        """A part of integers, a view of the mapped file."""
        kind = {"I8": "<i1", "I32": "<i4", "I64": "<i8"}[self.dtype(part)]
        return self._source.raw(self._parts[part]).view(kind).reshape(self.shape(part))

    def words(self, part: str) -> NDArray[np.uint32]:
        """A part of packed words, a view of the mapped file."""
        return self._source.raw(self._parts[part]).view("<u4").reshape(self.shape(part))

    def floats(self, part: str) -> Floats:
        """A part of numbers as float32."""
        return dequantize(TensorType[self.dtype(part)], self._source.raw(self._parts[part]), self.shape(part))


_FLOATS = ("F16", "BF16", "F32")


def _nibbles(words: NDArray[np.uint32], order: tuple[int, ...] = tuple(range(8))) -> Codes:
    """The eight codes of every word on a new last axis."""
    shifts = np.array(order, np.uint32) * np.uint32(4)
    return ((words[..., None] >> shifts) & np.uint32(15)).astype(np.uint8)


def _sizes(scheme: Scheme, inputs: int) -> tuple[int, int]:
    """Inputs of a group, and number of groups."""
    size = inputs if scheme.group_size == -1 else scheme.group_size
    return size, -(-inputs // size)


def _two(reader: _PartReader, part: str) -> tuple[int, int]:
    shape = reader.shape(part)
    if len(shape) != 2 or 0 in shape:
        raise FormatError(f"the part {part!r} of a quantized weight has shape {shape}; it must be a matrix")
    return shape[0], shape[1]


def _gptq(scheme: Scheme, reader: _PartReader) -> GroupedLinear:
    """Eight inputs are a word of qweight [inputs / 8, outputs], eight outputs one of qzeros [groups, outputs / 8]."""
    eighth, outputs = _two(reader, "qweight")
    inputs = 8 * eighth
    size, num_groups = _sizes(scheme, inputs)
    reader.check("qweight", ("I32",), (eighth, outputs))
    reader.check("scales", _FLOATS, (num_groups, outputs))
    reader.check("qzeros", ("I32",), (num_groups, outputs // 8))
    if outputs % 8:
        raise FormatError(f"a GPTQ weight has {outputs} outputs; they must be a multiple of 8")
    read_groups: Callable[[], NDArray[np.int64]] | None = None
    if "g_idx" in reader:
        reader.check("g_idx", ("I32",), (inputs,))
        read_groups = lambda: reader.integers("g_idx").astype(np.int64)  # noqa: E731

    def codes(start: int, end: int) -> Codes:
        return np.ascontiguousarray(_nibbles(reader.words("qweight")[:, start:end].T).reshape(end - start, inputs))

    def zeros() -> Floats:
        stored = _nibbles(reader.words("qzeros")).reshape(num_groups, outputs)
        return stored.T.astype(np.float32) + np.float32(scheme.zero_shift)

    return GroupedLinear((outputs, inputs), 4, size, codes, lambda: reader.floats("scales").T, zeros, read_groups)


def _awq(scheme: Scheme, reader: _PartReader) -> GroupedLinear:
    """Eight outputs, in an order of their own, are a word of qweight [inputs, outputs / 8] and of qzeros."""
    inputs, eighth = _two(reader, "qweight")
    outputs = 8 * eighth
    size, num_groups = _sizes(scheme, inputs)
    reader.check("qweight", ("I32",), (inputs, eighth))
    reader.check("scales", _FLOATS, (num_groups, outputs))
    reader.check("qzeros", ("I32",), (num_groups, eighth))

    def codes(start: int, end: int) -> Codes:
        words = reader.words("qweight")[:, start // 8 : end // 8]
        return np.ascontiguousarray(_nibbles(words, _AWQ_NIBBLES).reshape(inputs, end - start).T)

    def zeros() -> Floats:
        return _nibbles(reader.words("qzeros"), _AWQ_NIBBLES).reshape(num_groups, outputs).T.astype(np.float32)

    return GroupedLinear((outputs, inputs), 4, size, codes, lambda: reader.floats("scales").T, zeros)


def _compressed(scheme: Scheme, reader: _PartReader) -> GroupedLinear:
    """Rows of int8, or of words with the first code lowest; scales [outputs, groups], [outputs] or one for all."""
    bits, part = scheme.num_bits, "weight_packed" if scheme.layout == "packed" else "weight"
    outputs, columns = _two(reader, part)
    per_word = 32 // bits
    inputs = columns * per_word if scheme.layout == "packed" else columns
    reader.check(part, ("I32",) if scheme.layout == "packed" else ("I8",), (outputs, columns))
    given = reader.shape("weight_scale")
    num_groups = given[1] if len(given) == 2 else 1
    if not num_groups or inputs % num_groups or given not in ((outputs, num_groups), (outputs,), (1,), (1, 1), ()):
        raise FormatError(f"a weight of shape ({outputs}, {inputs}) has scales of shape {given}, which do not fit it")
    reader.check("weight_scale", _FLOATS, given)
    if "weight_shape" in reader:
        reader.check("weight_shape", ("I64", "I32"), (2,))
        stored = tuple(reader.integers("weight_shape").tolist())
        if stored != (outputs, inputs):
            raise UnsupportedError(f"a packed weight of shape {stored} fills its words only in part; that is not read")

    def codes(start: int, end: int) -> Codes:
        if scheme.layout == "int":
            return reader.integers("weight")[start:end].view(np.uint8) ^ np.uint8(128)
        if bits == 8:
            return np.ascontiguousarray(reader.words("weight_packed")[start:end]).view(np.uint8)
        return _nibbles(reader.words("weight_packed")[start:end]).reshape(end - start, inputs)

    def spread(values: Floats) -> Floats:
        return np.broadcast_to(values.reshape(-1, num_groups), (outputs, num_groups))

    zeros = _compressed_zeros(scheme, reader, outputs, given, spread) if "weight_zero_point" in reader else None
    read_groups: Callable[[], NDArray[np.int64]] | None = None
    if "weight_g_idx" in reader:
        reader.check("weight_g_idx", ("I32",), (inputs,))
        in_order = np.arange(inputs) // (inputs // num_groups)

        def read_groups() -> NDArray[np.int64]:
            groups = reader.integers("weight_g_idx").astype(np.int64)
            return in_order if (groups == -1).all() else groups  # -1 throughout means that none were chosen

    scales: Callable[[], Floats] = lambda: spread(reader.floats("weight_scale"))  # noqa: E731
    return GroupedLinear((outputs, inputs), bits, inputs // num_groups, codes, scales, zeros, read_groups)


def _compressed_zeros(
    scheme: Scheme,
    reader: _PartReader,
    outputs: int,
    scale_shape: tuple[int, ...],
    spread: Callable[[Floats], Floats],
) -> Callable[[], Floats]:
    """Zeros are stored as int8 in the shape of the scales, or packed along the outputs."""
    part, half = "weight_zero_point", np.float32(2 ** (scheme.num_bits - 1))
    if reader.dtype(part) == "I8":
        reader.check(part, ("I8",), scale_shape)
        return lambda: spread(reader.integers(part).astype(np.float32) + half)
    per_word = 32 // scheme.num_bits
    num_groups = scale_shape[1] if len(scale_shape) == 2 else 1
    reader.check(part, ("I32",), (-(-outputs // per_word), num_groups))

    def unpack() -> Floats:
        words = np.ascontiguousarray(reader.words(part).T)
        codes = words.view(np.uint8) if scheme.num_bits == 8 else _nibbles(words).reshape(num_groups, -1)
        return codes[:, :outputs].T.astype(np.float32)

    return unpack
