"""The files that a model was read from, as one: their name, hash, size and times, which an artifact remembers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from subsecond.formats.artifact_manifest import SourceFile

_CHUNK_BYTES = 2**20


def describe(paths: Sequence[Path]) -> SourceFile:
    """Name of the first file, size and times of all, and their hash; reads all of them.

    The hash of one file is its sha256; that of several is the sha256 over a line of hash and name for each.
    """
    num_bytes, modified_ns = size_and_times(paths)
    hashes = [_sha256(path) for path in paths]
    if len(paths) == 1:
        return SourceFile(paths[0].name, hashes[0], num_bytes, modified_ns)
    lines = "".join(f"{each} {path.name}\n" for each, path in zip(hashes, paths, strict=True))
    digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape"))
    return SourceFile(paths[0].name, digest.hexdigest(), num_bytes, modified_ns)


def size_and_times(paths: Sequence[Path]) -> tuple[int, int]:
    """Bytes of all files, and what changes with the time of any: of one file its time of modification in nanoseconds.

    Of several it is a number below 2^63 made of the name, size and time of each; the newest time alone would hide that
    an older file was exchanged.
    """
    found = [path.stat() for path in paths]
    num_bytes = sum(each.st_size for each in found)
    if len(paths) == 1:
        return num_bytes, found[0].st_mtime_ns
    lines = "".join(f"{each.st_size} {each.st_mtime_ns} {path.name}\n" for path, each in zip(paths, found, strict=True))
    digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).digest()
    return num_bytes, int.from_bytes(digest[:8]) >> 1


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
