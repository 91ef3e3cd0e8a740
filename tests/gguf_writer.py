"""Writes tiny GGUF files for tests, well-formed or with any field set wrong; independent of the reader."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
NUMBER_FORMATS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "B",
    U64: "Q",
    I64: "q",
    F64: "d",
}


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def number(value_type: int, value: float) -> bytes:
    """A GGUF number."""
    return struct.pack("<" + NUMBER_FORMATS[value_type], value)


def value(value_type: int, payload: bytes) -> bytes:
    """A typed value."""
    return struct.pack("<I", value_type) + payload


def array(element_type: int, payloads: Sequence[bytes]) -> bytes:
    """A typed array value of encoded elements."""
    return value(ARRAY, array_body(element_type, payloads))


def array_body(element_type: int, payloads: Sequence[bytes]) -> bytes:
    """An array without its own type id, as an element of another array."""
    return struct.pack("<IQ", element_type, len(payloads)) + b"".join(payloads)


def strings(values: Sequence[str | bytes]) -> bytes:
    """A typed array of strings."""
    return array(STRING, [text(each) for each in values])


@dataclass
class TensorEntry:
    """One tensor: `dims` in the file's order (row length first), `offset` computed unless given."""

    name: str | bytes
    dims: tuple[int, ...]
    type_id: int
    data: bytes
    offset: int | None = None


@dataclass
class GgufImage:
    """A GGUF file to be; counts are the true ones unless given."""

    metadata: list[tuple[str | bytes, bytes]] = field(default_factory=list)
    tensors: list[TensorEntry] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_keys: int | None = None
    alignment: int = 32

    def to_bytes(self) -> bytes:
        """The whole file."""
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_keys = len(self.metadata) if self.num_keys is None else self.num_keys
        header = self.magic + struct.pack("<IQQ", self.version, num_tensors, num_keys)
        header += b"".join(text(key) + payload for key, payload in self.metadata)
        body = b""
        for entry in self.tensors:
            offset = len(body) if entry.offset is None else entry.offset
            dims = struct.pack(f"<I{len(entry.dims)}Q", len(entry.dims), *entry.dims)
            header += text(entry.name) + dims + struct.pack("<IQ", entry.type_id, offset)
            body += self._padded(entry.data)
        return self._padded(header) + body

    def _padded(self, data: bytes) -> bytes:
        return data + bytes(-len(data) % self.alignment)
