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
from subsecond.models.packed_codes import PACKED_BITS, unpack_codes

_GPTQ_FILE = "quantize_config.json"
_SUPPORTED = (
    "supported are GPTQ (4 bits, formats gptq and gptq_v2), AWQ (4 bits, gemm) and compressed-tensors "
    "(pack-quantized with 4, 5 or 8 bits, int-quantized and naive-quantized with integers of at most 8 bits, and "
    "mixed-precision of these)"
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
_LAYOUTS: Mapping[str, Layout] = {"pack-quantized": "packed", "int-quantized": "int", "naive-quantized": "int"}
# Of activations that are rounded at run time.
_ACTIVATION_PARTS = frozenset({"input_scale", "input_zero_point"})


@dataclass(frozen=True, slots=True)
class WordScheme:
    """How all quantized weights of a GPTQ or AWQ checkpoint are stored.

    group_size   inputs of a group, -1 for all
    zero_shift   what is added to stored zeros
    """

    layout: Literal["gptq", "awq"]
    group_size: int = -1
    zero_shift: int = 0

    def is_quantized(self, parts: Mapping[str, str]) -> bool:
        """Whether these parts of a module are a quantized weight; others of the checkpoint are plain."""
        return "qweight" in parts

    def linear(self, parts: Mapping[str, str], source: Safetensors) -> GroupedLinear:
        """The weight whose `parts`, tensor names by what they are, lie in `source`.

        Raises FormatError where they are not all there or do not fit together.
        """
        reader = _open_parts(self.layout, parts, source)
        return _gptq(self, reader) if self.layout == "gptq" else _awq(self, reader)


@dataclass(frozen=True, slots=True)
class CompressedScheme:
    """How the quantized weights of a compressed-tensors checkpoint are stored, which can differ by module.

    The parts of a weight say what its layout is, and its shape how many bits a packed code has, so that the targets of
    `config_groups` need not be matched: they may be patterns, and a pattern made up by a file can take hours.

    packed_bits   of all groups that are packed; empty where none is
    has_rows      whether there are groups with rows of int8
    """

    packed_bits: frozenset[int]
    has_rows: bool

    def is_quantized(self, parts: Mapping[str, str]) -> bool:
        """Whether these parts of a module are a quantized weight; others of the checkpoint are plain."""
        return "weight_packed" in parts or "weight_scale" in parts

    def linear(self, parts: Mapping[str, str], source: Safetensors) -> GroupedLinear:
        """As `WordScheme.linear`; UnsupportedError for bits or a layout that no group of the configuration has."""
        if "weight_packed" not in parts:
            reader = _open_parts("int", parts, source)
            if not self.has_rows:
                raise FormatError(f"the weight {min(parts.values())!r} is not packed, as all groups in config.json are")
            return _compressed(8, reader, is_packed=False)
        reader = _open_parts("packed", parts, source)
        return _compressed(self._bits_of(reader), reader, is_packed=True)

    def _bits_of(self, reader: _PartReader) -> int:
        if len(self.packed_bits) == 1:
            return next(iter(self.packed_bits))
        if "weight_shape" not in reader:
            raise _unsupported("a packed weight without 'weight_shape' in a checkpoint with several numbers of bits")
        reader.check("weight_shape", ("I64", "I32"), (2,))
        _, columns = _two(reader, "weight_packed")
        inputs = int(reader.integers("weight_shape")[1])
        found = next((bits for bits in self.packed_bits if bits * inputs == 32 * columns), None)
        if found is None:
            raise FormatError(
                f"a packed weight of {inputs} inputs has {columns} words for an output, which no group of config.json "
                f"gives; their bits are {', '.join(map(str, sorted(self.packed_bits))) or 'those of none'}"
            )
        return found


Scheme = WordScheme | CompressedScheme


def _open_parts(layout: Layout, parts: Mapping[str, str], source: Safetensors) -> _PartReader:
    parts = {part: name for part, name in parts.items() if part not in _ACTIVATION_PARTS}
    required, optional = _PARTS[layout]
    if not required <= set(parts) <= required | optional:
        raise FormatError(
            f"a quantized weight has the parts {', '.join(sorted(parts.values()))}; "
            f"it needs {', '.join(sorted(required))} and may have {', '.join(sorted(optional)) or 'no other'}"
        )
    return _PartReader(parts, source)


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


def _gptq_scheme(given: Mapping[str, object]) -> WordScheme:
    if given.get("bits") != 4:
        raise _unsupported(f"GPTQ with {shorten(given.get('bits'))} bits")
    form = given.get("checkpoint_format") or "gptq"
    if given.get("is_marlin_format") or form not in ("gptq", "gptq_v2"):
        raise _unsupported(f"the GPTQ format {'marlin' if given.get('is_marlin_format') else shorten(form)}")
    if given.get("dynamic"):
        raise _unsupported("GPTQ with other settings for some layers (dynamic)")
    return WordScheme("gptq", _group_size(given), zero_shift=1 if form == "gptq" else 0)


def _awq_scheme(given: Mapping[str, object]) -> WordScheme:
    if given.get("bits") != 4:
        raise _unsupported(f"AWQ with {shorten(given.get('bits'))} bits")
    version = str(given.get("version", "gemm")).lower()
    if version != "gemm":
        raise _unsupported(f"the AWQ version {shorten(version)}")
    if given.get("zero_point", True) is not True:
        raise _unsupported("AWQ without zero points")
    return WordScheme("awq", _group_size(given))


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
    if form not in (*_LAYOUTS, "mixed-precision"):
        raise _unsupported(f"the compressed-tensors format {shorten(form)}")
    packed_bits: set[int] = set()
    has_rows = False
    for group in read_mapping(given, "config_groups", _WHERE).values():
        layout, bits = _read_group(group, form)
        packed_bits |= {bits} if layout == "packed" else set()
        has_rows |= layout == "int"
    if not packed_bits and not has_rows:
        raise _unsupported(f"the compressed-tensors format {form} with no groups")
    return CompressedScheme(frozenset(packed_bits), has_rows)


def _read_group(group: object, form: object) -> tuple[Layout, int]:
    """Layout and bits of one of `config_groups`; `form` is the format of those that do not say theirs."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        raise FormatError(f"{_WHERE}: a group of config_groups has no 'weights'")
    form = group.get("format") or form
    layout = _LAYOUTS.get(form) if isinstance(form, str) else None
    if layout is None:
        raise _unsupported(f"a group of the compressed-tensors format {shorten(form)}")
    kind, bits, strategy = weights.get("type", "int"), weights.get("num_bits"), weights.get("strategy")
    allowed = PACKED_BITS if layout == "packed" else (8, 7, 6, 5, 4)
    if kind != "int" or type(bits) is not int or bits not in allowed or strategy not in ("group", "channel", "tensor"):
        shown = f"{str(kind)[:20]} of {str(bits)[:20]} bits by {str(strategy)[:20]}"
        raise _unsupported(f"the compressed-tensors format {form} with {shown}")
    return layout, bits


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


def _sizes(scheme: WordScheme, inputs: int) -> tuple[int, int]:
    """Inputs of a group, and number of groups."""
    size = inputs if scheme.group_size == -1 else scheme.group_size
    return size, -(-inputs // size)


def _two(reader: _PartReader, part: str) -> tuple[int, int]:
    shape = reader.shape(part)
    if len(shape) != 2 or 0 in shape:
        raise FormatError(f"the part {part!r} of a quantized weight has shape {shape}; it must be a matrix")
    return shape[0], shape[1]


def _gptq(scheme: WordScheme, reader: _PartReader) -> GroupedLinear:
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


def _awq(scheme: WordScheme, reader: _PartReader) -> GroupedLinear:
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


def _compressed(bits: int, reader: _PartReader, *, is_packed: bool) -> GroupedLinear:
    """Rows of int8, or of words of packed codes; scales [outputs, groups], [outputs] or one for all."""
    part = "weight_packed" if is_packed else "weight"
    outputs, columns = _two(reader, part)
    inputs = columns * 32 // bits if is_packed else columns
    if is_packed and columns * 32 % bits:
        raise UnsupportedError(
            f"{columns} words for an output are not filled by codes of {bits} bits without gaps, as compressed-tensors "
            "packs them since 0.18; quantize the model again with a newer release"
        )
    reader.check(part, ("I32",) if is_packed else ("I8",), (outputs, columns))
    given = reader.shape("weight_scale")
    num_groups = given[1] if len(given) == 2 else 1
    if not num_groups or inputs % num_groups or given not in ((outputs, num_groups), (outputs,), (1,), (1, 1), ()):
        raise FormatError(f"a weight of shape ({outputs}, {inputs}) has scales of shape {given}, which do not fit it")
    reader.check("weight_scale", _FLOATS, given)
    if "weight_shape" in reader:
        reader.check("weight_shape", ("I64", "I32"), (2,))
        stored = tuple(reader.integers("weight_shape").tolist())
        if stored != (outputs, inputs):
            raise UnsupportedError(
                f"a packed weight of shape {stored} has words for ({outputs}, {inputs}); such padding is not read"
            )

    def codes(start: int, end: int) -> Codes:
        if not is_packed:
            return reader.integers("weight")[start:end].view(np.uint8) ^ np.uint8(128)
        return unpack_codes(np.ascontiguousarray(reader.words("weight_packed")[start:end]).view(np.uint8), bits)

    def spread(values: Floats) -> Floats:
        return np.broadcast_to(values.reshape(-1, num_groups), (outputs, num_groups))

    zeros = _compressed_zeros(bits, reader, outputs, given, spread) if "weight_zero_point" in reader else None
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
    bits: int,
    reader: _PartReader,
    outputs: int,
    scale_shape: tuple[int, ...],
    spread: Callable[[Floats], Floats],
) -> Callable[[], Floats]:
    """Zeros are stored as int8 in the shape of the scales, or packed along the outputs."""
    part, half = "weight_zero_point", np.float32(2 ** (bits - 1))
    if reader.dtype(part) == "I8":
        reader.check(part, ("I8",), scale_shape)
        return lambda: spread(reader.integers(part).astype(np.float32) + half)
    num_groups = scale_shape[1] if len(scale_shape) == 2 else 1
    num_words = -(-outputs * bits // 32)
    reader.check(part, ("I32",), (num_words, num_groups))

    def unpack() -> Floats:
        whole = np.zeros((num_groups, -(-num_words // bits) * bits), "<u4")
        whole[:, :num_words] = reader.words(part).T
        return unpack_codes(whole.view(np.uint8), bits)[:, :outputs].T.astype(np.float32)

    return unpack
