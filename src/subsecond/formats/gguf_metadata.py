"""Metadata of a GGUF header: walks over typed values, checks each, and decodes it when it is looked up.

Nothing is built while the header is walked, and what decoding may build later is bounded: every value is charged its
memory when it is walked over, and a header whose charges exceed the budget is refused.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from types import MappingProxyType
from typing import overload

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError

MAX_HEADER_BYTES = 1 << 27
HEADER_BUDGET_BYTES = 48 << 20
"""Memory that the values of a header may take once all are decoded. Strings of arrays stay in the file, but count."""
MAX_STRING_BYTES = 1 << 23
MAX_ELEMENT_BYTES = 1 << 20
"""Length of one string in an array."""
MAX_ARRAY_BYTES = 1 << 24
MAX_ARRAY_ELEMENTS = 1 << 20
MAX_WALKED_ELEMENTS = 1 << 20
"""Strings of all arrays in the header, which have to be stepped over one by one."""
MAX_ARRAY_NESTING = 3

# Memory of Python objects, rounded up.
_KEY_BYTES = 512
_ARRAY_BYTES = 2048  # an array inside an array; what bounds these is the time for each
_CHARACTER_BYTES = 4

_CHUNK_STRINGS = 1 << 15
_CHUNK_BYTES = 1 << 20

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
_NUMBER_BYTES: Mapping[ValueType, int] = MappingProxyType(
    {
        ValueType.UINT8: 8,  # Python keeps one object for each of these values
        ValueType.BOOL: 8,
        ValueType.UINT64: 56,
        ValueType.INT64: 56,
    }
)
"""Memory of a number in a list, for the types where it is not 40 bytes."""


class StringArray(Sequence[str]):
    """The strings of an array, read from the mapped file; reading them all in order is fast, and none is kept.

    Text that is not UTF-8 is decoded with surrogate escapes, so different bytes stay different strings.
    """

    __slots__ = ("_bounds", "_data")

    def __init__(self, data: mmap.mmap, bounds: array[int]) -> None:
        """`bounds` is where in the file each string's length field lies, and where the last string ends."""
        self._data = data
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # IndexError and negative numbers as in a list
        return self._text(place)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._chunks())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, tuple, StringArray)):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"

    def _chunks(self) -> Iterator[list[str]]:
        first = 0
        while first < len(self):
            last = self._chunk_end(first)
            yield self._decode(first, last)
            first = last

    def _text(self, place: int) -> str:
        return self._data[self._bounds[place] + 8 : self._bounds[place + 1]].decode("utf-8", "surrogateescape")

    def _chunk_end(self, first: int) -> int:
        """End of the strings from `first` on that are decoded together: few enough, and not too many bytes."""
        bounds = np.frombuffer(self._bounds, dtype=np.uintc)
        full = int(np.searchsorted(bounds, self._bounds[first] + _CHUNK_BYTES, side="right")) - 1
        return min(max(full, first + 1), first + _CHUNK_STRINGS, len(self))

    def _decode(self, first: int, last: int) -> list[str]:
        """Strings [first, last): one decoding of all with a separator where their length fields are, then one split."""
        start, end = self._bounds[first], self._bounds[last]
        stored = np.frombuffer(self._data, dtype=np.uint8, count=end - start, offset=start)
        fields = np.frombuffer(self._bounds, dtype=np.uintc)[first:last].astype(np.intp) - start
        is_kept = np.ones(stored.size, dtype=np.bool_)
        for byte in range(1, 8):
            is_kept[fields + byte] = False
        text: NDArray[np.uint8] = stored[is_kept]
        separators = fields - 7 * np.arange(last - first)
        text[separators] = 0xFF
        unused = np.flatnonzero(np.bincount(text, minlength=256)[:128] == 0)
        if unused.size == 0:  # no ASCII character is left to separate by
            return [self._text(place) for place in range(first, last)]
        text[separators] = unused[0]
        return text.tobytes().decode("utf-8", "surrogateescape").split(chr(int(unused[0])))[1:]


@dataclass(frozen=True, slots=True)
class ValuePlace:
    """A checked value in the file: `type` at byte `start`; `bounds` are those of a `StringArray`."""

    type: ValueType
    start: int
    bounds: array[int] | None = None


class Metadata(Mapping[str, object]):
    """Metadata by key, each value decoded at its first use: a number, a text, a list of numbers, a `StringArray`."""

    def __init__(self, data: mmap.mmap, places: Mapping[str, ValuePlace]) -> None:
        self._data = data
        self._places = places
        self._values: dict[str, object] = {}

    def __getitem__(self, key: str) -> object:
        if key not in self._values:
            place = self._places[key]
            if place.bounds is not None:
                self._values[key] = StringArray(self._data, place.bounds)
            else:
                self._values[key] = _decode(self._data, place.type, place.start)[0]
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places


class HeaderBudget:
    """Memory that a header, or the headers of all parts of a model, may still take."""

    def __init__(self) -> None:
        self._num_bytes = HEADER_BUDGET_BYTES
        self._num_walked = 0

    def charge(self, num_bytes: int, what: str) -> None:
        """Take memory from the budget; FormatError when it does not suffice."""
        self._num_bytes -= num_bytes
        if self._num_bytes < 0:
            raise FormatError(f"{what} brings the header above {HEADER_BUDGET_BYTES} bytes of memory")

    def walk(self, count: int, what: str) -> None:
        """Count strings that are stepped over one by one; FormatError when there are too many."""
        self._num_walked += count
        if self._num_walked > MAX_WALKED_ELEMENTS:
            raise FormatError(f"{what} brings the header above {MAX_WALKED_ELEMENTS} strings in arrays")


class HeaderCursor:
    """Steps through the header; every step checks that the bytes exist and that limits hold."""

    def __init__(self, data: mmap.mmap, budget: HeaderBudget) -> None:
        self.data = data
        self.position = 0
        self.budget = budget
        self._end = min(len(data), MAX_HEADER_BYTES)

    def take(self, num_bytes: int, what: str) -> int:
        """Step over `num_bytes` and return where they start."""
        start = self.position
        if num_bytes > self._end - start:
            raise self._too_short(what)
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
        self.budget.charge(_KEY_BYTES + _CHARACTER_BYTES * length, f"a {what}")
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError:
            raise FormatError(f"a {what} is not valid UTF-8") from None

    def value(self, what: str) -> ValuePlace:
        """Check a value with its type id and step over it."""
        value_type = self._value_type(what)
        start, bounds = self.position, None
        if value_type is ValueType.STRING:
            self._skip_string(what)
        elif value_type is ValueType.ARRAY:
            bounds = self._skip_array(what, 1)
        else:
            self._skip_numbers(value_type, 1, what)
        return ValuePlace(value_type, start, bounds)

    def _value_type(self, what: str) -> ValueType:
        type_id = self.u32(what)
        try:
            return ValueType(type_id)
        except ValueError:
            raise FormatError(f"{what} has the unknown value type {type_id}") from None

    def _skip_string(self, what: str) -> None:
        length = self.u64(what)
        if length > MAX_STRING_BYTES:
            raise FormatError(f"{what} is a string of {length} bytes; at most {MAX_STRING_BYTES} are allowed")
        self.budget.charge(_CHARACTER_BYTES * length, what)
        self.take(length, what)

    def _skip_array(self, what: str, depth: int) -> array[int] | None:
        """Returns the bounds of the strings, for an array of them that is in no other array."""
        if depth > MAX_ARRAY_NESTING:
            raise FormatError(f"{what} nests arrays more than {MAX_ARRAY_NESTING} deep")
        self.budget.charge(_ARRAY_BYTES, what)
        element_type, count = self._value_type(what), self.u64(what)
        if count > MAX_ARRAY_ELEMENTS:
            raise FormatError(f"{what} has {count} elements; at most {MAX_ARRAY_ELEMENTS} are allowed")
        start, bounds = self.position, None
        if element_type is ValueType.STRING:
            bounds = self._skip_strings(count, what)
            if depth > 1:
                bounds = None
        elif element_type is ValueType.ARRAY:
            for _ in range(count):
                self._skip_array(what, depth + 1)
        else:
            self._skip_numbers(element_type, count, what)
        num_bytes = self.position - start
        if num_bytes > MAX_ARRAY_BYTES:
            raise FormatError(f"{what} has {num_bytes} bytes; at most {MAX_ARRAY_BYTES} are allowed in an array")
        return bounds

    def _skip_numbers(self, value_type: ValueType, count: int, what: str) -> None:
        start = self.take(count * _NUMBER_DTYPES[value_type].itemsize, what)
        self.budget.charge(count * _NUMBER_BYTES.get(value_type, 40), what)
        if value_type is ValueType.BOOL and count:
            given = np.frombuffer(self.data, dtype=np.uint8, count=count, offset=start)
            if given.max() > 1:
                raise FormatError(f"{what} holds a truth value other than 0 and 1")

    def _skip_strings(self, count: int, what: str) -> array[int]:
        if count * 8 > self._end - self.position:
            raise self._too_short(what)
        self.budget.walk(count, what)
        bounds = array("I")
        self.budget.charge(2 * bounds.itemsize * count, what)  # an array that grows holds more than it shows
        data, position, append, u64 = self.data, self.position, bounds.append, _U64
        last_field = self._end - 8
        for _ in range(count):
            if position > last_field:
                raise self._too_short(what)
            append(position)
            position += 8 + u64(data, position)[0]
        if position > self._end:
            raise self._too_short(what)
        append(position)
        longest = int(np.diff(np.frombuffer(bounds, dtype=np.uintc)).max(initial=8)) - 8
        if longest > MAX_ELEMENT_BYTES:
            raise FormatError(f"{what} holds a string of {longest} bytes; at most {MAX_ELEMENT_BYTES} are allowed")
        self.budget.charge(position - self.position, what)
        self.position = position
        return bounds

    def _too_short(self, what: str) -> FormatError:
        if self._end < len(self.data):
            return FormatError(f"the header does not end within {MAX_HEADER_BYTES} bytes, inside {what}")
        return FormatError(f"the file ends inside {what}")


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


def _decode_array(data: mmap.mmap, start: int) -> tuple[Sequence[object], int]:
    type_id, count = _U32_U64(data, start)
    element_type, position = ValueType(type_id), start + 12
    if element_type is ValueType.STRING:
        bounds = array("I", [position])
        for _ in range(count):
            position += 8 + _U64(data, position)[0]
            bounds.append(position)
        return StringArray(data, bounds), position
    if element_type is ValueType.ARRAY:
        values: list[object] = []
        for _ in range(count):
            inner, position = _decode_array(data, position)
            values.append(inner)
        return values, position
    dtype = _NUMBER_DTYPES[element_type]
    numbers = np.frombuffer(data, dtype=dtype, count=count, offset=position).tolist()
    return numbers, position + count * dtype.itemsize
