"""Models split into several GGUF files: which files belong together and whether they fit; opens none of them.

The convention is that of llama.cpp's gguf-split: parts are called NAME-00001-of-00003.gguf and say in their metadata
which one they are (split.no, from 0), how many there are (split.count) and how many tensors all have together
(split.tensors.count).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from subsecond.core.errors import FormatError
from subsecond.formats.fields import read_int, shorten

MAX_PARTS = 512

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_ARCHITECTURE = "general.architecture"


def named_parts(path: Path) -> tuple[Path, ...]:
    """The files of the model that `path` belongs to, first to last, by its name alone; (path,) for a single file."""
    match = _PART_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    number, count = int(match["number"]), int(match["count"])
    if not (1 <= number <= count and 2 <= count <= MAX_PARTS):
        return (path,)
    return tuple(path.with_name(f"{match['stem']}-{each:05}-of-{count:05}.gguf") for each in range(1, count + 1))


def split_count(metadata: Mapping[str, object]) -> int:
    """Number of parts that a file says its model has, 1 for a model in one file."""
    if "split.count" not in metadata:
        return 1
    return max(1, read_int(metadata, "split.count", "GGUF metadata", 0, MAX_PARTS))


def part_paths(path: Path, count: int) -> tuple[Path, ...]:
    """The files of a model of `count` parts, one of which is `path`; FormatError when its name says otherwise."""
    paths = named_parts(path)
    if len(paths) != count:
        raise FormatError(
            f"this is one of {count} parts of a model, so its name must end in -NUMBER-of-{count:05}.gguf, "
            f"for example model-00001-of-{count:05}.gguf; give it the name that it was published with"
        )
    return paths


def check_part(metadata: Mapping[str, object], first: Mapping[str, object], place: int, count: int) -> None:
    """FormatError unless `metadata` is that of part `place` (from 0) of `count`, of the same model as the first one."""
    given_count = split_count(metadata)
    if given_count != count:
        raise FormatError(f"this part says that its model has {given_count} parts, the others say {count}")
    number = read_int(metadata, "split.no", "GGUF metadata", 0, MAX_PARTS)
    if number != place:
        raise FormatError(f"by its name this is part {place + 1}, but its metadata says part {number + 1} (split.no)")
    for key in ("split.tensors.count", _ARCHITECTURE):
        if key in metadata and metadata[key] != first.get(key):
            raise FormatError(
                f"{key} is {shorten(metadata[key])}, but {shorten(first.get(key))} in the first part; "
                "they belong to different models"
            )


def check_num_tensors(first: Mapping[str, object], num_tensors: int) -> None:
    """FormatError unless all parts together have as many tensors as the first one says."""
    if "split.tensors.count" not in first:
        return
    wanted = read_int(first, "split.tensors.count", "GGUF metadata", 0, 2**31 - 1)
    if wanted != num_tensors:
        raise FormatError(f"the parts of the model have {num_tensors} tensors together, {wanted} are declared")
