"""Writes a GGUF file of version 3, tensor after tensor, as a whole or not at all; what is in it is the caller's."""

from __future__ import annotations

import math
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import InputError
from subsecond.formats.gguf_metadata import ValueType
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType
from subsecond.formats.whole_folder import sync_folder

Value = bool | int | float | str | Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]
"""A value of metadata: integers are stored as UINT32 (in lists INT32), numbers as FLOAT32."""

ALIGNMENT = 32
_VERSION = 3


class GgufWriter:
    """Writes a file with these `metadata` and `tensors`, type and shape by name, in the order of `tensors`.

    A context manager: the file is there at its end, and nothing when an exception leaves it. A file that is there
    already is an InputError.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, Value],
        tensors: Mapping[str, tuple[TensorType, tuple[int, ...]]],
    ) -> None:
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} is there already; give another name or remove it")
        self._path = path
        self._sizes = {name: _num_bytes(kind, shape) for name, (kind, shape) in tensors.items()}
        self._left = iter(tensors)
        self._header = _header(metadata, tensors, self._sizes)

    def __enter__(self) -> GgufWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-", suffix=".part")
        self._partial = Path(name)
        self._file = os.fdopen(handle, "wb")
        self._file.write(self._header)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert next(self._left, None) is None, "not all tensors were added"
                self._file.flush()
                os.fsync(self._file.fileno())
                umask = os.umask(0)
                os.umask(umask)
                self._partial.chmod(0o666 & ~umask)
                self._partial.rename(self._path)
                sync_folder(self._path.parent)
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def add(self, name: str, raw: NDArray[np.uint8]) -> None:
        """The stored blocks of the next tensor, row after row."""
        expected = next(self._left)
        assert name == expected, f"tensor {name!r} was added in the place of {expected!r}"
        assert raw.nbytes == self._sizes[name], f"{raw.nbytes} bytes for {name!r}, which has {self._sizes[name]}"
        self._file.write(np.ascontiguousarray(raw).reshape(-1).view(np.uint8).data)
        self._file.write(bytes(-raw.nbytes % ALIGNMENT))


def _num_bytes(kind: TensorType, shape: tuple[int, ...]) -> int:
    layout = BLOCK_LAYOUTS[kind]
    assert shape and shape[-1] % layout.num_elements == 0, f"rows of {shape} are no whole blocks of {kind.name}"
    return math.prod(shape) // layout.num_elements * layout.num_bytes


def _header(
    metadata: Mapping[str, Value],
    tensors: Mapping[str, tuple[TensorType, tuple[int, ...]]],
    sizes: Mapping[str, int],
) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    parts += [_text(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for name, (kind, shape) in tensors.items():
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts += [_text(name), dims, struct.pack("<IQ", kind, offset)]
        offset += sizes[name] + -sizes[name] % ALIGNMENT
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", ValueType.STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", ValueType.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", ValueType.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", ValueType.FLOAT32, value)
    kind, content = _elements(list(value))
    return struct.pack("<IIQ", ValueType.ARRAY, kind, len(value)) + content


def _elements(values: list[object]) -> tuple[ValueType, bytes]:
    kinds = set(map(type, values))
    if kinds <= {str}:
        return ValueType.STRING, b"".join(_text(str(each)) for each in values)
    if kinds == {bool}:
        return ValueType.BOOL, np.array(values, np.uint8).tobytes()
    if kinds == {int}:
        return ValueType.INT32, np.array(values, "<i4").tobytes()
    assert kinds == {float}, f"a list of {kinds} has no type in GGUF"
    return ValueType.FLOAT32, np.array(values, "<f4").tobytes()
