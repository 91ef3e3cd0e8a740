"""Named weights as a model file stores them; who computes with them, and in which layout, is not known here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError
from subsecond.formats.gguf import GgufFile
from subsecond.formats.gguf_types import TensorType, dequantize


class WeightSource(Protocol):
    """Gives weights by name. A name that it does not have is a FormatError."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every weight, (out, in) or (length,)."""

    def type_of(self, name: str) -> TensorType:
        """How the weight is stored."""

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of the weight, read-only, row after row."""

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The weight as float32 in its shape."""

    def release(self) -> None:
        """Give back the memory of what was read so far; it is read again when asked for."""


class GgufWeights:
    """The tensors of a GGUF file; bytes are read from the mapped file when asked for. Implements `WeightSource`."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._shapes = MappingProxyType({name: tuple(tensor.shape) for name, tensor in file.tensors.items()})

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, (out, in) or (length,)."""
        return self._shapes

    def type_of(self, name: str) -> TensorType:
        """The tensor's GGUF type."""
        self._check(name)
        return self._file.tensors[name].type

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, a view of the mapped file."""
        self._check(name)
        return self._file.raw(name)

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The tensor as float32 in its shape."""
        return dequantize(self.type_of(name), self.raw(name), self._shapes[name])

    def release(self) -> None:
        """Give back the pages of the mapped file."""
        self._file.release()

    def _check(self, name: str) -> None:
        if name not in self._shapes:
            raise FormatError(f"the model file has no tensor {name!r}")


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A weight as a file stores it: `raw` uint8 holds its blocks, row after row."""

    type: TensorType
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]

    def dequantize(self) -> NDArray[np.float32]:
        """The weight as float32 in its shape."""
        return dequantize(self.type, self.raw, self.shape)


def stored_tensor(source: WeightSource, name: str) -> StoredTensor:
    """A weight as its source stores it."""
    return StoredTensor(source.type_of(name), source.shapes[name], source.raw(name))


class RenamedWeights:
    """Some weights of a source under other names; `names` gives the source's for each. Implements `WeightSource`."""

    def __init__(self, source: WeightSource, names: Mapping[str, str]) -> None:
        self._source, self._names = source, names
        self._shapes = MappingProxyType({name: source.shapes[theirs] for name, theirs in names.items()})

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every weight."""
        return self._shapes

    def type_of(self, name: str) -> TensorType:
        """How the weight is stored."""
        return self._source.type_of(self._find(name))

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of the weight."""
        return self._source.raw(self._find(name))

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The weight as float32 in its shape."""
        return self._source.dequantize(self._find(name))

    def release(self) -> None:
        """Give back the memory of the source."""
        self._source.release()

    def _find(self, name: str) -> str:
        if name not in self._names:
            raise FormatError(f"there is no weight {name!r}")
        return self._names[name]


class HeldWeights:
    """Weights that are held in memory, by name. Implements `WeightSource`."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._shapes = MappingProxyType({name: tensor.shape for name, tensor in tensors.items()})

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every weight."""
        return self._shapes

    def type_of(self, name: str) -> TensorType:
        """How the weight is stored."""
        return self._find(name).type

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of the weight."""
        return self._find(name).raw

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The weight as float32 in its shape."""
        return self._find(name).dequantize()

    def release(self) -> None:
        """Nothing: there is no file to read them from again."""

    def _find(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise FormatError(f"there is no weight {name!r}")
        return self._tensors[name]
