"""The weights of a Hugging Face folder under the names and in the forms that graphs use; implements `WeightSource`."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import shorten
from subsecond.formats.gguf_types import TensorType, dequantize
from subsecond.formats.safetensors import Safetensors
from subsecond.models.families.family import Family
from subsecond.models.hf_names import NameTable, Place
from subsecond.models.hf_quantized import Scheme

_HEAD = "output"
_EMBEDDING = "token_embd"
_TABLES = frozenset({_EMBEDDING, "position_embd", "token_types"})
MAX_SHOWN = 4
_PLAIN = ("F32", "F16", "BF16")
_log = logging.getLogger(__name__)


class HfWeights:
    """The weights of a checkpoint in safetensors, read from the mapped files when asked for.

    Experts are stacked to [experts, outputs, inputs], linears that are stored [inputs, outputs] are transposed, norms
    that are stored less one are completed, and quantized weights become blocks (see `GroupedLinear`): one weight at a
    time. `scheme` is that of quantized checkpoints; `has_head` says whether there is an output head besides the
    embedding table, None where only the tensors tell.

    Raises:
        FormatError: a tensor is there twice, an expert is missing, or parts of a quantized weight do not fit.
        UnsupportedError: a tensor has no place in the family, or a type that is not read.
    """

    def __init__(self, source: Safetensors, family: Family, scheme: Scheme | None, has_head: bool | None) -> None:
        modules = _sort_out(source, family)
        if has_head is False:
            modules.pop((_HEAD, None), None)  # a copy of the table, or of no use; transformers does not read it either
        if has_head and (_HEAD, None) not in modules:
            raise FormatError(
                "there is no output head ('lm_head'), and config.json says that it is no copy of the table"
            )
        self._source = source
        self._reader = _ModuleReader(source, family, scheme)
        self._modules = modules
        self._shapes = MappingProxyType(self._find_shapes())

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every weight, (out, in), (length,) or (experts, out, in)."""
        return self._shapes

    def type_of(self, name: str) -> TensorType:
        """The type of what `raw` gives; for quantized weights this reads scales and zeros."""
        return self._find(name).type

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of the weight: a view of the mapped file where it is stored as graphs use it."""
        return self._find(name).raw()

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The weight as float32 in its shape."""
        tensor = self._find(name)
        return dequantize(tensor.type, tensor.raw(), tensor.shape)

    def release(self) -> None:
        """Give back the pages of the mapped files."""
        self._source.release()

    def _find(self, name: str) -> _Tensor:
        if name not in self._shapes:
            raise FormatError(f"the model has no tensor {name!r}")
        module, _, part = name.rpartition(".")
        if (module, None) in self._modules:
            return self._reader.read(module, self._modules[module, None])[part]
        experts = range(self._shapes[name][0])
        return _Stacked([self._reader.read(module, self._modules[module, expert])[part] for expert in experts])

    def _find_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight; readers are made for it and dropped, so that many weights take little memory."""
        shapes: dict[str, tuple[int, ...]] = {}
        experts: dict[str, list[int]] = defaultdict(list)
        for (module, expert), parts in self._modules.items():
            for part, tensor in self._reader.read(module, parts).items():
                name = f"{module}.{part}"
                if shapes.setdefault(name, tensor.shape) != tensor.shape:
                    raise FormatError(f"{name!r} has the shapes {shapes[name]} and {tensor.shape} in different experts")
                if expert is not None:
                    experts[name].append(expert)
        for name, found in experts.items():
            missing = set(range(len(found))) - set(found)
            if missing:
                raise FormatError(f"{name!r} of expert {min(missing)} is missing")
            shapes[name] = (len(found), *shapes[name])
        return shapes


class _Tensor(Protocol):
    """A weight of known shape, whose type and bytes are found when asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def type(self) -> TensorType: ...

    def raw(self) -> NDArray[np.uint8]: ...


Modules = dict[tuple[str, int | None], dict[str, str]]


def _sort_out(source: Safetensors, family: Family) -> Modules:
    """Tensor name by what it is of its module ("weight", "bias", ...), by module and expert."""
    table = NameTable(family)
    modules: Modules = defaultdict(dict)
    unknown: list[str] = []
    num_unknown = num_of_images = 0
    for name in source.tensors:
        place: Place | None = table.find(name)
        if place is not None:
            parts = modules[place.module, place.expert]
            if place.part in parts:
                raise FormatError(f"{shorten(name)} and {shorten(parts[place.part])} are the same weight")
            parts[place.part] = name
        elif table.is_of_images(name):
            num_of_images += 1
        elif not table.is_unused(name):
            num_unknown += 1
            if num_unknown <= MAX_SHOWN:
                unknown.append(shorten(name))
    if unknown:
        some = ", ".join(unknown) + (", ..." if num_unknown > MAX_SHOWN else "")
        raise UnsupportedError(
            f"the checkpoint has {num_unknown} tensors that family {family.names[0]!r} has no place for ({some}); "
            "this variant of the family is not supported"
        )
    if num_of_images:
        _log.warning("only the text part of this model is used; %d tensors of its image part are not", num_of_images)
    return dict(modules)


class _ModuleReader:
    """Finds the form in which the tensors of a module are to be given."""

    def __init__(self, source: Safetensors, family: Family, scheme: Scheme | None) -> None:
        self._source = source
        self._family = family
        self._scheme = scheme

    def read(self, module: str, parts: Mapping[str, str]) -> dict[str, _Tensor]:
        """Weight and bias of a module, by these names."""
        tensors: dict[str, _Tensor] = {}
        plain = dict(parts)
        if self._scheme is not None and self._scheme.is_quantized(parts):
            plain = {"bias": parts["bias"]} if "bias" in parts else {}
            quantized = {part: name for part, name in parts.items() if part != "bias"}
            tensors["weight"] = self._scheme.linear(quantized, self._source)
        for part, name in plain.items():
            if part not in ("weight", "bias"):
                raise UnsupportedError(
                    f"tensor {shorten(name)} is a part of a quantized weight, but config.json names no method "
                    "that has it"
                )
            tensors[part] = self._plain(module, part, name)
        return tensors

    def _plain(self, module: str, part: str, name: str) -> _Tensor:
        stored = _Stored(self._source, name)
        if part == "weight" and module.endswith("_norm") and self._family.has_unit_norms:
            return _UnitNorm(stored)
        is_linear = len(stored.shape) == 2 and module not in _TABLES and module != _HEAD
        return _Transposed(stored) if self._family.has_transposed_linears and is_linear else stored


class _Stored:
    """A tensor as it lies in the file."""

    def __init__(self, source: Safetensors, name: str) -> None:
        tensor = source.tensors[name]
        if tensor.dtype not in _PLAIN:
            raise UnsupportedError(
                f"tensor {shorten(name)} is stored as {tensor.dtype}; supported are {', '.join(_PLAIN)}, "
                "and the integers of the quantized checkpoints that config.json can describe"
            )
        if 0 in tensor.shape or not tensor.shape:
            raise FormatError(f"tensor {shorten(name)} has shape {tensor.shape}; sizes of at least 1 are needed")
        self.shape = tensor.shape
        self.type = TensorType[tensor.dtype]
        self._source = source
        self._name = name

    def raw(self) -> NDArray[np.uint8]:
        return self._source.raw(self._name)


class _Transposed:
    """A matrix that is stored [inputs, outputs]."""

    def __init__(self, stored: _Stored) -> None:
        self.shape = stored.shape[::-1]
        self.type = stored.type
        self._stored = stored

    def raw(self) -> NDArray[np.uint8]:
        kind = np.uint32 if self.type is TensorType.F32 else np.uint16
        matrix = self._stored.raw().view(kind).reshape(self._stored.shape)
        return np.ascontiguousarray(matrix.T).reshape(-1).view(np.uint8)


class _UnitNorm:
    """The weight of a norm that is stored less one, as float32, in which its sum with one is not rounded away."""

    def __init__(self, stored: _Stored) -> None:
        self.shape = stored.shape
        self.type = TensorType.F32
        self._stored = stored

    def raw(self) -> NDArray[np.uint8]:
        weight = dequantize(self._stored.type, self._stored.raw(), self.shape) + np.float32(1)
        return weight.reshape(-1).view(np.uint8)


class _Stacked:
    """The same matrix of every expert."""

    def __init__(self, parts: Sequence[_Tensor]) -> None:
        self._parts = parts
        self.shape = (len(parts), *parts[0].shape)

    @property
    def type(self) -> TensorType:
        """The type of all parts; float32 where it differs, as quantized ones can."""
        types = {part.type for part in self._parts}
        return types.pop() if len(types) == 1 else TensorType.F32

    def raw(self) -> NDArray[np.uint8]:
        given = self.type
        return np.concatenate([part.raw() if part.type is given else _as_float32(part) for part in self._parts])


def _as_float32(tensor: _Tensor) -> NDArray[np.uint8]:
    assert math.prod(tensor.shape)
    return dequantize(tensor.type, tensor.raw(), tensor.shape).reshape(-1).view(np.uint8)
