"""GGUF files (versions 2 and 3, little-endian): metadata and the place of every tensor, read from mapped files.

Opening a file only walks its header: every count, length, offset and type id is checked against the file's size and
against limits before anything of that size is built. A model in several files opens as one. The layout is specified
in ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.fields import shorten
from subsecond.formats.gguf_metadata import HeaderBudget, HeaderCursor, Metadata, ValuePlace, ValueType
from subsecond.formats.gguf_parts import check_num_tensors, check_part, part_paths, split_count
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

MAX_METADATA_KEYS = 1 << 14
MAX_TENSORS = 1 << 15
MAX_KEY_BYTES = 1 << 10
MAX_TENSOR_NAME_BYTES = 1 << 8
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20

_TENSOR_BYTES = 512  # memory of a tensor's entry beside its name, rounded up
_U32 = struct.Struct("<I").unpack_from


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies: `shape` in numpy order (rows first), `offset` in bytes from the start of file `part`."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    num_bytes: int
    part: int = 0


class GgufFile:
    """A model in one mapped GGUF file or in several, its parts; `paths` names them in order.

    Numeric metadata arrays are lists of numbers, arrays of strings are sequences of str that are decoded when read.
    Metadata is that of the first part.
    """

    def __init__(
        self,
        paths: tuple[Path, ...],
        data: tuple[mmap.mmap, ...],
        metadata: Mapping[str, object],
        tensors: Mapping[str, GgufTensor],
    ) -> None:
        self.paths = paths
        self.metadata = metadata
        self.tensors = tensors
        self._data = data

    @classmethod
    def open(cls, path: str | Path) -> GgufFile:
        """Map the file and read its header; for a part of a model, do so with every part.

        Raises:
            InputError: the file cannot be opened.
            FormatError: the file is not GGUF or is damaged, or the parts of a model are not all there or do not fit.
            UnsupportedError: a version, byte order or tensor type that this reader does not know.
        """
        path, budget = Path(path), HeaderBudget()
        opened = _open_part(path, budget)
        with _naming(path):
            count = split_count(opened.metadata)
            paths = (path,) if count == 1 else part_paths(path, count)
        for part in paths:
            if part != path and not part.is_file():
                raise FormatError(f"{path} is one of {count} parts of a model, and {part} is missing; fetch it too")
        parts = [opened if part == path else _open_part(part, budget) for part in paths]
        tensors = dict(opened.tensors) if count == 1 else _join(paths, parts)
        return cls(paths, tuple(part.data for part in parts), parts[0].metadata, MappingProxyType(tensors))

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of a tensor as a read-only 1-D view of the mapped file; KeyError for an unknown name."""
        tensor = self.tensors[name]
        return np.frombuffer(self._data[tensor.part], dtype=np.uint8, count=tensor.num_bytes, offset=tensor.offset)

    def release(self) -> None:
        """Give back the memory of all pages that were read; views stay valid, their pages come from the file again."""
        for data in self._data:
            data.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class _Part:
    """One mapped file with what its header says."""

    data: mmap.mmap
    metadata: Metadata
    tensors: Mapping[str, GgufTensor]


def _open_part(path: Path, budget: HeaderBudget) -> _Part:
    if not path.is_file():  # opening a pipe would wait for whoever writes to it
        reason = "it is no regular file" if path.exists() else "there is no such file"
        raise InputError(f"cannot open {path}: {reason}; give the path of a GGUF file")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < len(MAGIC):
                raise FormatError(f"{path} is not a GGUF file: it has {size} bytes")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror or error}; give the path of a GGUF file") from error
    with _naming(path):
        metadata, tensors = _read_header(HeaderCursor(data, budget))
    return _Part(data, metadata, tensors)


def _join(paths: Sequence[Path], parts: Sequence[_Part]) -> dict[str, GgufTensor]:
    """The tensors of all parts of a model, which must fit together."""
    first = parts[0].metadata
    tensors: dict[str, GgufTensor] = {}
    for place, part in enumerate(parts):
        with _naming(paths[place]):
            check_part(part.metadata, first, place, len(parts))
            for name, tensor in part.tensors.items():
                if name in tensors:
                    other = paths[tensors[name].part].name
                    raise FormatError(f"tensor {name!r} is in {other} too; they belong to different models")
                tensors[name] = replace(tensor, part=place)
    with _naming(paths[0]):
        check_num_tensors(first, len(tensors))
    return tensors


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before the message of what is wrong with it."""
    try:
        yield
    except (FormatError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from None


def _read_header(cursor: HeaderCursor) -> tuple[Metadata, Mapping[str, GgufTensor]]:
    num_tensors, num_keys = _read_counts(cursor)
    places: dict[str, ValuePlace] = {}
    for _ in range(num_keys):
        key = cursor.name("metadata key", MAX_KEY_BYTES)
        if key in places:
            raise FormatError(f"metadata key {shorten(key)} occurs twice")
        places[key] = cursor.value(f"metadata key {shorten(key)}")
    metadata = Metadata(cursor.data, places)
    alignment = _alignment(places, metadata)
    infos: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        tensor = _read_tensor_info(cursor, alignment)
        if tensor.name in infos:
            raise FormatError(f"tensor {tensor.name!r} occurs twice")
        infos[tensor.name] = tensor
    return metadata, _place_tensors(infos, cursor.position, alignment, len(cursor.data))


def _read_counts(cursor: HeaderCursor) -> tuple[int, int]:
    """Check magic and version; return the numbers of tensors and of metadata keys."""
    start = cursor.take(8, "file header")
    magic = cursor.data[start : start + 4]
    if magic != MAGIC:
        raise FormatError(f"not a GGUF file: it starts with {magic!r} instead of {MAGIC!r}")
    (version,) = _U32(cursor.data, start + 4)
    if version not in SUPPORTED_VERSIONS:
        reason = "big-endian files" if version & 0xFFFF == 0 and version else f"GGUF version {version}"
        raise UnsupportedError(f"{reason} cannot be read; supported are little-endian files of version 2 and 3")
    num_tensors, num_keys = cursor.u64("tensor count"), cursor.u64("metadata key count")
    if num_tensors > MAX_TENSORS:
        raise FormatError(f"{num_tensors} tensors are declared; at most {MAX_TENSORS} are allowed")
    if num_keys > MAX_METADATA_KEYS:
        raise FormatError(f"{num_keys} metadata keys are declared; at most {MAX_METADATA_KEYS} are allowed")
    return num_tensors, num_keys


def _alignment(places: Mapping[str, ValuePlace], metadata: Mapping[str, object]) -> int:
    key = "general.alignment"
    if key not in places:
        return DEFAULT_ALIGNMENT
    if places[key].type is not ValueType.UINT32:
        raise FormatError(f"{key} has type {places[key].type.name}; it must be UINT32")
    alignment = metadata[key]
    assert isinstance(alignment, int)
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise FormatError(f"{key} is {alignment}; it must be a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _read_tensor_info(cursor: HeaderCursor, alignment: int) -> GgufTensor:
    """Read one tensor's entry; its offset is still relative to the start of the tensor data."""
    name = cursor.name("tensor name", MAX_TENSOR_NAME_BYTES)
    what = f"tensor {name!r}"
    cursor.budget.charge(_TENSOR_BYTES, what)
    num_dimensions = cursor.u32(what)
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise FormatError(f"{what} has {num_dimensions} dimensions; allowed are 1 to {MAX_DIMENSIONS}")
    stored_shape = tuple(cursor.u64(what) for _ in range(num_dimensions))
    type_id, offset = cursor.u32(what), cursor.u64(what)
    try:
        tensor_type = TensorType(type_id)
    except ValueError:
        raise UnsupportedError(f"{what} has the unknown type id {type_id}") from None
    layout = BLOCK_LAYOUTS[tensor_type]
    num_elements = math.prod(stored_shape)  # arbitrary precision: cannot overflow
    if num_elements == 0 or stored_shape[0] % layout.num_elements:
        raise FormatError(
            f"{what} has shape {stored_shape[::-1]}; {tensor_type.name} needs sizes of at least 1 "
            f"and rows of a multiple of {layout.num_elements}"
        )
    num_bytes = num_elements // layout.num_elements * layout.num_bytes
    if num_bytes > len(cursor.data) or offset > len(cursor.data):
        raise FormatError(f"{what} of {num_bytes} bytes at data offset {offset} lies outside the file")
    if offset % alignment:
        raise FormatError(f"{what} starts at data offset {offset}, which is no multiple of the alignment {alignment}")
    return GgufTensor(name, stored_shape[::-1], tensor_type, offset, num_bytes)


def _place_tensors(
    infos: Mapping[str, GgufTensor], header_end: int, alignment: int, file_bytes: int
) -> Mapping[str, GgufTensor]:
    """Turn offsets into file offsets and refuse tensors that overlap or leave the file."""
    data_start = -(-header_end // alignment) * alignment
    end, before = data_start, ""
    for tensor in sorted(infos.values(), key=lambda info: info.offset):
        start = data_start + tensor.offset
        if start < end:
            raise FormatError(f"tensors {before!r} and {tensor.name!r} overlap")
        end, before = start + tensor.num_bytes, tensor.name
        if end > file_bytes:
            raise FormatError(
                f"tensor {tensor.name!r} ends at byte {end}, but the file has {file_bytes}; was it fetched completely?"
            )
    return MappingProxyType({name: replace(info, offset=data_start + info.offset) for name, info in infos.items()})
