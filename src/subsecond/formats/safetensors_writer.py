"""Writes tensors as safetensors files of a folder, one tensor in memory at a time; converts nothing.

The header of a file comes first and lists every tensor, so the tensors of a file are gathered in a file of their own
and copied behind the header when it is complete, those with the largest elements first: every tensor is then aligned.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from subsecond.formats.safetensors import DTYPE_BYTES, INDEX_NAME, MAX_FILES, MAX_HEADER_BYTES, SINGLE_NAME, SafeTensor

MAX_FILE_BYTES = 4 * 10**9
"""Size from which a folder has several files, in bytes of tensors."""
_ALIGNMENT = 8
_COPY_BYTES = 2**24
_METADATA = {"format": "pt"}  # transformers refuses files that do not say from which framework they are


class SafetensorsWriter:
    """Writes model.safetensors into `folder`, or several files and their index where one would be too large.

    A context manager: complete at its end, or after `finish`. What an exception leaves is for the caller to remove,
    with the folder.
    """

    def __init__(self, folder: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._names: set[str] = set()
        self._finished: list[tuple[Path, dict[str, SafeTensor]]] = []
        self._open_part()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: NDArray[np.uint8]) -> None:
        """Append one tensor: `data` holds its elements in C order, little-endian; `dtype` is one of `DTYPE_BYTES`."""
        assert name not in self._names, f"tensor {name!r} was added before"
        assert data.nbytes == math.prod(shape) * DTYPE_BYTES[dtype], f"{data.nbytes} bytes for {name!r} {dtype} {shape}"
        offset = self._gathered.tell()
        if offset and offset + data.nbytes > self._max_file_bytes:
            self._close_part()
            self._open_part()
            offset = 0
        self._names.add(name)
        self._tensors[name] = SafeTensor(dtype, shape, offset, data.nbytes, len(self._finished))
        self._gathered.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Let go of the open file, also of an unfinished writer."""
        self._gathered.close()

    def _open_part(self) -> None:
        self._tensors: dict[str, SafeTensor] = {}
        self._gathered = (self._folder / ".gathered.part").open("w+b")

    def _close_part(self) -> None:
        assert len(self._finished) < MAX_FILES, f"more than {MAX_FILES} files"
        place = self._folder / f".part-{len(self._finished)}.safetensors"
        order = sorted(self._tensors, key=lambda name: -DTYPE_BYTES[self._tensors[name].dtype])  # stable
        self._gathered.flush()
        with place.open("xb") as file:
            file.write(_header(self._tensors, order))
            for name in order:
                _copy(self._gathered, self._tensors[name], file)
            file.flush()
            os.fsync(file.fileno())
        self._gathered.close()
        with suppress(OSError):
            (self._folder / ".gathered.part").unlink()
        self._finished.append((place, self._tensors))

    def finish(self) -> None:
        """Write what is left, and the index where there are several files; all of it is on the disk then."""
        self._close_part()
        count = len(self._finished)
        if count == 1:
            self._finished[0][0].rename(self._folder / SINGLE_NAME)
            return
        places: dict[str, str] = {}
        num_bytes = sum(each.num_bytes for _, tensors in self._finished for each in tensors.values())
        for index, (place, tensors) in enumerate(self._finished):
            final = self._folder / f"model-{index + 1:05}-of-{count:05}.safetensors"
            place.rename(final)
            places |= dict.fromkeys(tensors, final.name)
        content = {"metadata": {"total_size": num_bytes}, "weight_map": dict(sorted(places.items()))}
        (self._folder / INDEX_NAME).write_text(json.dumps(content, indent=1), encoding="ascii")


def _header(tensors: Mapping[str, SafeTensor], order: list[str]) -> bytes:
    """Length and text of a header whose tensors follow it in this order."""
    content: dict[str, object] = {"__metadata__": _METADATA}
    begin = 0
    for name in order:
        tensor = tensors[name]
        content[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.num_bytes],
        }
        begin += tensor.num_bytes
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    assert len(text) <= MAX_HEADER_BYTES, f"a header of {len(text)} bytes"
    return len(text).to_bytes(8, "little") + text


def _copy(source: IO[bytes], tensor: SafeTensor, target: IO[bytes]) -> None:
    source.seek(tensor.offset)
    left = tensor.num_bytes
    while left:
        chunk = source.read(min(left, _COPY_BYTES))
        assert chunk, "the gathered tensors are shorter than what was written"
        target.write(chunk)
        left -= len(chunk)
