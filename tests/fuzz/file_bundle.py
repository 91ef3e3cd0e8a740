"""A folder as one input: the files of a fixed list of names, each behind its length, in the order of the list."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

_LENGTH = struct.Struct("<I")
_MISSING = 2**32 - 1


def pack(contents: Sequence[bytes | None]) -> bytes:
    """One input of the contents; None for a file that is missing."""
    pieces = []
    for content in contents:
        pieces.append(_LENGTH.pack(_MISSING if content is None else len(content)))
        pieces.append(content or b"")
    return b"".join(pieces)


def unpack(data: bytes, num_files: int) -> list[bytes | None]:
    """Contents of the files. All bytes mean something: a length beyond the end takes the rest."""
    if num_files == 1:
        return [data]
    contents: list[bytes | None] = []
    for _ in range(num_files):
        length = _LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else _MISSING
        data = data[_LENGTH.size :]
        contents.append(None if length == _MISSING else data[:length])
        data = data if length == _MISSING else data[length:]
    return contents


def write(data: bytes, names: Sequence[str], folder: Path) -> None:
    """Write the files into a folder; those that are missing are removed."""
    for name, content in zip(names, unpack(data, len(names)), strict=True):
        place = folder / name
        if content is None:
            place.unlink(missing_ok=True)
            continue
        try:
            place.write_bytes(content)
        except FileNotFoundError:
            place.parent.mkdir(parents=True)
            place.write_bytes(content)
