"""safetensors files, one or several of a folder: the place of every tensor, read from mapped files; converts nothing.

A file is eight bytes with the length of its header, the header in JSON, then the tensors. Every name, shape and range
is checked against the file before it is used. Specified in the README of the safetensors project.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from sys import getsizeof
from types import MappingProxyType
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.fields import shorten
from subsecond.formats.json_cursor import JsonBudget, JsonCursor

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 16 * 2**20
MAX_FILES = 1024
MAX_DIMENSIONS = 8

DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "I16": 2,
        "F16": 2,
        "BF16": 2,
        "I32": 4,
        "F32": 4,
        "I64": 8,
        "F64": 8,
    }
)
"""Bytes of an element by the type's name in files."""

_TENSOR_BYTES = 288  # memory of a tensor's entry beside its name, rounded up
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """Where a tensor lies: `offset` in bytes from the start of file `part`; `dtype` as in `DTYPE_BYTES`."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    part: int


class Safetensors:
    """The tensors of the mapped files `paths`."""

    def __init__(self, paths: tuple[Path, ...], data: tuple[mmap.mmap, ...], tensors: Mapping[str, SafeTensor]) -> None:
        self.paths = paths
        self.tensors = tensors
        self._data = data

    @classmethod
    def open(cls, *paths: Path) -> Safetensors:
        """Map the files and read their headers.

        Raises:
            InputError: a file cannot be opened.
            FormatError: a file is damaged, or two files have a tensor of the same name.
            UnsupportedError: a tensor has a type that this reader does not know.
        """
        tensors: dict[str, SafeTensor] = {}
        data, budget = [], JsonBudget()
        for part, path in enumerate(paths):
            data.append(_map(path))
            _read_header(data[-1], path, part, tensors, budget)
        return cls(paths, tuple(data), MappingProxyType(tensors))

    @classmethod
    def open_folder(cls, folder: Path) -> Safetensors:
        """The files that a folder's index names, or its one file; errors as in `open`, FormatError for a missing one.

        Raises UnsupportedError for a folder whose weights are pickled only, or that has none.
        """
        index = folder / INDEX_NAME
        if not index.is_file():
            if not (folder / SINGLE_NAME).is_file():
                raise _without_weights(folder)
            return cls.open(folder / SINGLE_NAME)
        paths = tuple(folder / name for name in sorted({name for _, name in _listed(index)}))
        if not 1 <= len(paths) <= MAX_FILES:
            raise FormatError(f"{index} names {len(paths)} files in its 'weight_map'; allowed are 1 to {MAX_FILES}")
        for path in paths:
            if not path.is_file():
                raise FormatError(f"{index} names {path.name}, which is missing; fetch it too")
        opened = cls.open(*paths)
        for name, file_name in _listed(index):  # once more, to keep no second copy of all names
            found = opened.tensors.get(name)
            if found is None or paths[found.part].name != file_name:
                raise FormatError(f"{index} says that tensor {shorten(name)} is in {file_name}, but it is not")
        return opened

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of a tensor as a read-only 1-D view of the mapped file; KeyError for an unknown name."""
        tensor = self.tensors[name]
        if not tensor.num_bytes:
            return np.zeros(0, np.uint8)
        return np.frombuffer(self._data[tensor.part], np.uint8, tensor.num_bytes, tensor.offset)

    def release(self) -> None:
        """Give back the memory of all pages that were read; views stay valid, their pages come from the file again."""
        for data in self._data:
            data.madvise(mmap.MADV_DONTNEED)


def has_weights(folder: Path) -> bool:
    """Whether the folder holds weights as safetensors."""
    return (folder / INDEX_NAME).is_file() or (folder / SINGLE_NAME).is_file()


def _without_weights(folder: Path) -> UnsupportedError:
    if any(folder.glob("pytorch_model*.bin")):
        return UnsupportedError(
            f"the weights in {folder} are pickled (pytorch_model.bin); unpickling runs whatever code a file holds, so "
            "such files are never read. Use a version of the model with safetensors, or convert it: load it with "
            "transformers and call save_pretrained(FOLDER)"
        )
    return UnsupportedError(f"{folder} has no weights: neither {SINGLE_NAME} nor {INDEX_NAME} is there")


def _map(path: Path) -> mmap.mmap:
    if not path.is_file():  # opening a pipe would wait for whoever writes to it
        raise InputError(f"cannot open {path}: there is no such file")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise FormatError(f"{path} is not a safetensors file: it has {size} bytes")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror or error}") from error


def _listed(path: Path) -> Iterator[tuple[str, str]]:
    """Tensor name and file name of every line of an index."""
    data = _map(path)
    if len(data) > MAX_HEADER_BYTES:
        raise FormatError(f"{path} has {len(data)} bytes; at most {MAX_HEADER_BYTES} are allowed")
    cursor = JsonCursor(data, 0, len(data), str(path), JsonBudget())
    for section in cursor.members():
        if section != "weight_map":
            cursor.skip()
            continue
        for tensor in cursor.members():
            file_name = cursor.string()
            if not _FILE_NAME.fullmatch(file_name):
                raise FormatError(f"{path}: {shorten(file_name)} is no name of a file beside it")
            yield tensor, file_name
    cursor.finish()


def _read_header(data: mmap.mmap, path: Path, part: int, tensors: dict[str, SafeTensor], budget: JsonBudget) -> None:
    """Add the tensors of one file to `tensors`."""
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise FormatError(
            f"{path} is damaged or not a safetensors file: it says that its header has {length} bytes; "
            f"the file has {len(data)} and {MAX_HEADER_BYTES} are allowed"
        )
    start = 8 + length
    cursor = JsonCursor(data, 8, start, str(path), budget)
    added = []
    for name in cursor.members():
        if name == "__metadata__":
            cursor.skip()
            continue
        where = f"{path}: tensor {shorten(name)}"
        if name in tensors:
            place = "twice" if tensors[name].part == part else "in another file too; they belong to different models"
            raise FormatError(f"{where} is there {place}")
        budget.charge(getsizeof(name) + _TENSOR_BYTES, str(path))
        tensors[name] = _read_tensor(cursor.entry(), where, start, len(data), part)
        added.append(name)
    cursor.finish()
    added = [name for name in added if tensors[name].num_bytes]
    added.sort(key=lambda name: tensors[name].offset)
    for name, following in pairwise(added):
        if tensors[name].offset + tensors[name].num_bytes > tensors[following].offset:
            raise FormatError(f"{path}: tensors {shorten(name)} and {shorten(following)} overlap")


def _read_tensor(entry: Mapping[str, object], where: str, start: int, file_bytes: int, part: int) -> SafeTensor:
    if set(entry) != _ENTRY_KEYS:
        raise FormatError(f"{where} has the fields {shorten(sorted(entry))}; they must be {sorted(_ENTRY_KEYS)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise UnsupportedError(f"{where} has type {shorten(dtype)}; known are {', '.join(DTYPE_BYTES)}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"{where} has shape {shorten(shape)}; it must be at most {MAX_DIMENSIONS} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise FormatError(f"{where} lies at {shorten(offsets)}; two numbers of bytes are needed")
    begin, end = offsets
    num_bytes = math.prod(shape) * DTYPE_BYTES[dtype]  # arbitrary precision: cannot overflow
    if end - begin != num_bytes:
        raise FormatError(f"{where} of shape {shape} and type {dtype} takes {num_bytes} bytes, not {begin} to {end}")
    if start + end > file_bytes:
        raise FormatError(
            f"{where} ends at byte {start + end}, but the file has {file_bytes}; was it fetched completely?"
        )
    return SafeTensor(dtype, tuple(shape), start + begin, num_bytes, part)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    """Whether the value is a list of sizes."""
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**48 for each in value)
