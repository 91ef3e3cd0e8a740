"""Reads small JSON files of others into plain objects, bounded in size; what the fields mean is known to the caller."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from subsecond.core.errors import FormatError, InputError

# Each byte of JSON may become some twenty bytes of Python objects, so that parsing stays below 64 MB.
MAX_JSON_BYTES = 2 * 2**20


def read_json_object(path: Path) -> dict[str, object]:
    """The object that the file holds; errors as in `read_json`, and a FormatError when it holds something else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise FormatError(f"{path} holds {type(content).__name__}; it must be an object")
    return content


def read_json(path: Path) -> object:
    """What the file holds.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is larger than `MAX_JSON_BYTES`, no JSON, or an object in it has a key twice.
    """
    if not path.is_file():  # reading a pipe would wait for whoever writes to it
        raise InputError(f"cannot read {path}: there is no such file")
    try:
        with path.open("rb") as file:
            # read() allocates what it is asked for, whatever the file has
            text = file.read(min(path.stat().st_size, MAX_JSON_BYTES) + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if len(text) > MAX_JSON_BYTES:
        raise FormatError(f"{path} is larger than {MAX_JSON_BYTES} bytes, more than a file of this kind needs")
    try:
        content: object = json.loads(text, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    return content


def refuse_duplicates(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """The object of these members, for `json.loads`; ValueError when a key occurs twice."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key occurs twice in an object")
    return content
