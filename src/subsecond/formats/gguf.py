"""GGUF files (versions 2 and 3, little-endian): metadata and the place of every tensor, read from a mapped file.

Opening a file only walks its header: every count, length, offset and type id is checked against the file's size and the
limits below before anything of that size is built. Metadata values are decoded when they are looked up. The layout is
specified in ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

MAX_METADATA_KEYS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = 1 << 10
MAX_TENSOR_NAME_BYTES = 1 << 8
MAX_STRING_BYTES = 1 << 24
MAX_ARRAY_BYTES = 1 << 24
MAX_ARRAY_ELEMENTS = 1 << 21
MAX_WALKED_ELEMENTS = 1 << 22
"""Strings and inner arrays of the whole header, which have to be stepped over one by one."""
MAX_ARRAY_NESTING = 3
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20

_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from
_U32_U64 = struct.Struct("<IQ").unpack_from


class ValueType(IntEnum):
    """Type of a metadata value; the value is the id stored in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_NUMBER_DTYPES: Mapping[ValueType, np.dtype[np.generic]] = MappingProxyType(
    {
        ValueType.UINT8: np.dtype("u1"),
        ValueType.INT8: np.dtype("i1"),
        ValueType.UINT16: np.dtype("<u2"),
        ValueType.INT16: np.dtype("<i2"),
        ValueType.UINT32: np.dtype("<u4"),
        ValueType.INT32: np.dtype("<i4"),
        ValueType.FLOAT32: np.dtype("<f4"),
        ValueType.BOOL: np.dtype("?"),
        ValueType.UINT64: np.dtype("<u8"),
        ValueType.INT64: np.dtype("<i8"),
        ValueType.FLOAT64: np.dtype("<f8"),
    }
)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies: `shape` in numpy order (rows first), `offset` in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    num_bytes: int


class GgufFile:
    """A mapped GGUF file. Numeric metadata arrays are lists of numbers, string arrays lists of str.

    Text that is not UTF-8 is decoded with surrogate escapes, so different bytes stay different strings.
    """

    def __init__(self, data: mmap.mmap, metadata: Mapping[str, object], tensors: Mapping[str, GgufTensor]) -> None:
        self._data = data
        self.metadata = metadata
        self.tensors = tensors

    @classmethod
    def open(cls, path: str | Path) -> GgufFile:
        """Map the file and read its header.

        Raises:
            InputError: the file cannot be opened.
            FormatError: the file is not GGUF or is damaged.
            UnsupportedError: a version, byte order or tensor type that this reader does not know.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < len(MAGIC):
                    raise FormatError(f"{path} is not a GGUF file: it has {size} bytes")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"cannot open {path}: {error.strerror or error}; give the path of a GGUF file") from error
        try:
            metadata, tensors = _read_header(data)
        except (FormatError, UnsupportedError) as error:
            raise type(error)(f"{path}: {error}") from None
        return cls(data, metadata, tensors)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The stored bytes of a tensor as a read-only 1-D view of the mapped file; KeyError for an unknown name."""
        tensor = self.tensors[name]
        return np.frombuffer(self._data, dtype=np.uint8, count=tensor.num_bytes, offset=tensor.offset)


@dataclass(frozen=True, slots=True)
class _Place:
    """A checked value in the file: `type` at byte `start`."""

    type: ValueType
    start: int


class _Metadata(Mapping[str, object]):
    """Metadata by key, each value decoded at its first use."""

    def __init__(self, data: mmap.mmap, places: Mapping[str, _Place]) -> None:
        self._data = data
        self._places = places
        self._values: dict[str, object] = {}

    def __getitem__(self, key: str) -> object:
        if key not in self._values:
            place = self._places[key]
            self._values[key] = _decode(self._data, place.type, place.start)[0]
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places


def _read_header(data: mmap.mmap) -> tuple[Mapping[str, object], Mapping[str, GgufTensor]]:
    cursor = _Cursor(data)
    num_tensors, num_keys = _read_counts(cursor)
    places: dict[str, _Place] = {}
    for _ in range(num_keys):
        key = cursor.name("metadata key", MAX_KEY_BYTES)
        if key in places:
            raise FormatError(f"metadata key {key!r} occurs twice")
        value_type = cursor.value_type(f"metadata key {key!r}")
        places[key] = _Place(value_type, cursor.position)
        cursor.skip_value(value_type, f"metadata key {key!r}")
    metadata = _Metadata(data, places)
    alignment = _alignment(places, metadata)
    infos: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        tensor = _read_tensor_info(cursor, alignment)
        if tensor.name in infos:
            raise FormatError(f"tensor {tensor.name!r} occurs twice")
        infos[tensor.name] = tensor
    return metadata, _place_tensors(infos, cursor.position, alignment, len(data))


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
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


def _alignment(places: Mapping[str, _Place], metadata: Mapping[str, object]) -> int:
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


def _read_tensor_info(cursor: _Cursor, alignment: int) -> GgufTensor:
    """Read one tensor's entry; its offset is still relative to the start of the tensor data."""
    name = cursor.name("tensor name", MAX_TENSOR_NAME_BYTES)
    what = f"tensor {name!r}"
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
    return MappingProxyType(
        {
            name: GgufTensor(name, info.shape, info.type, data_start + info.offset, info.num_bytes)
            for name, info in infos.items()
        }
    )


class _Cursor:
    """Steps through the header; every step checks that the bytes exist and that limits hold."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0
        self._end = len(data)
        self._num_walked = 0

    def take(self, num_bytes: int, what: str) -> int:
        """Step over `num_bytes` and return where they start."""
        start = self.position
        if num_bytes > self._end - start:
            raise FormatError(f"the file ends inside {what}: {num_bytes} bytes are wanted at byte {start}")
        self.position = start + num_bytes
        return start

    def u32(self, what: str) -> int:
        """Read a 32-bit number."""
        return int(_U32(self.data, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        """Read a 64-bit number."""
        return int(_U64(self.data, self.take(8, what))[0])

    def name(self, what: str, max_bytes: int) -> str:
        """Read a key or a tensor name, which must be UTF-8 and not empty."""
        length = self.u64(what)
        if not 1 <= length <= max_bytes:
            raise FormatError(f"a {what} has {length} bytes; allowed are 1 to {max_bytes}")
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError:
            raise FormatError(f"a {what} is not valid UTF-8") from None

    def value_type(self, what: str) -> ValueType:
        """Read the type id of a value."""
        type_id = self.u32(what)
        try:
            return ValueType(type_id)
        except ValueError:
            raise FormatError(f"{what} has the unknown value type {type_id}") from None

    def skip_value(self, value_type: ValueType, what: str, depth: int = 0) -> None:
        """Check a value and step over it."""
        if value_type is ValueType.STRING:
            self._skip_strings(1, what)
        elif value_type is ValueType.ARRAY:
            self._skip_array(what, depth + 1)
        else:
            start = self.take(_NUMBER_DTYPES[value_type].itemsize, what)
            if value_type is ValueType.BOOL:
                self._check_bools(start, 1, what)

    def _skip_array(self, what: str, depth: int) -> None:
        if depth > MAX_ARRAY_NESTING:
            raise FormatError(f"{what} nests arrays more than {MAX_ARRAY_NESTING} deep")
        element_type, count = self.value_type(what), self.u64(what)
        if count > MAX_ARRAY_ELEMENTS:
            raise FormatError(f"{what} has {count} elements; at most {MAX_ARRAY_ELEMENTS} are allowed")
        start = self.position
        if element_type is ValueType.STRING:
            self._skip_strings(count, what)
        elif element_type is ValueType.ARRAY:
            self._count_walked(count, what)
            for _ in range(count):
                self._skip_array(what, depth + 1)
        else:
            self.take(count * _NUMBER_DTYPES[element_type].itemsize, what)
            if element_type is ValueType.BOOL:
                self._check_bools(start, count, what)
        num_bytes = self.position - start
        if num_bytes > MAX_ARRAY_BYTES:
            raise FormatError(f"{what} has {num_bytes} bytes; at most {MAX_ARRAY_BYTES} are allowed in an array")

    def _skip_strings(self, count: int, what: str) -> None:
        self._count_walked(count, what)
        data, position, end = self.data, self.position, self._end
        last_length = end - 8
        for _ in range(count):
            if position > last_length:
                raise FormatError(f"the file ends inside {what}")
            length = _U64(data, position)[0]
            if length > MAX_STRING_BYTES:
                raise FormatError(f"{what} holds a string of {length} bytes; at most {MAX_STRING_BYTES} are allowed")
            position += 8 + length
        if position > end:
            raise FormatError(f"the file ends inside {what}")
        self.position = position

    def _count_walked(self, count: int, what: str) -> None:
        self._num_walked += count
        if self._num_walked > MAX_WALKED_ELEMENTS:
            raise FormatError(f"{what} brings the header above {MAX_WALKED_ELEMENTS} strings and inner arrays")

    def _check_bools(self, start: int, count: int, what: str) -> None:
        if count and np.frombuffer(self.data, dtype=np.uint8, count=count, offset=start).max() > 1:
            raise FormatError(f"{what} holds a truth value other than 0 and 1")


def _decode(data: mmap.mmap, value_type: ValueType, start: int) -> tuple[object, int]:
    """Return the value at `start`, which has been checked, and the position behind it."""
    if value_type is ValueType.STRING:
        end = start + 8 + _U64(data, start)[0]
        return data[start + 8 : end].decode("utf-8", "surrogateescape"), end
    if value_type is ValueType.ARRAY:
        return _decode_array(data, start)
    dtype = _NUMBER_DTYPES[value_type]
    number: object = np.frombuffer(data, dtype=dtype, count=1, offset=start)[0].item()
    return number, start + dtype.itemsize


def _decode_array(data: mmap.mmap, start: int) -> tuple[list[object], int]:
    type_id, count = _U32_U64(data, start)
    element_type, position = ValueType(type_id), start + 12
    values: list[object] = []
    if element_type is ValueType.STRING:
        append = values.append
        for _ in range(count):
            first = position + 8
            position = first + _U64(data, position)[0]
            append(data[first:position].decode("utf-8", "surrogateescape"))
        return values, position
    if element_type is ValueType.ARRAY:
        for _ in range(count):
            inner, position = _decode_array(data, position)
            values.append(inner)
        return values, position
    dtype = _NUMBER_DTYPES[element_type]
    values = np.frombuffer(data, dtype=dtype, count=count, offset=position).tolist()
    return values, position + count * dtype.itemsize
