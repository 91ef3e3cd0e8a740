"""What an export gives back and how it tells that it goes on; the formats have a file each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from subsecond.models.checkpoint import Checkpoint
from subsecond.models.weights import StoredTensor

Progress = Callable[[int, int], None]
"""Is told how many weights are written, and of how many."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written.

    path      the file or folder; num_bytes of all files of it
    types     how many weights have which type there, by its name
    notes     what is not as in the source, as sentences
    """

    format: str
    path: Path
    num_bytes: int
    types: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON holds them."""
        return {**asdict(self), "path": str(self.path)}


def stored_weights(source: Checkpoint, progress: Progress) -> Iterator[tuple[str, StoredTensor]]:
    """Every weight of a model with its name, one in memory at a time."""
    names = list(source.shapes)
    for done, name in enumerate(names):
        progress(done, len(names))
        weights = source.weights
        yield name, StoredTensor(weights.type_of(name), source.shapes[name], weights.raw(name))
        weights.release()
    progress(len(names), len(names))


def reading_notes(source: Checkpoint, format_name: str) -> tuple[str, ...]:
    """The note on readings, which no other format has words for."""
    found = Counter(reading for reading in source.readings.values() if reading != "stored")
    if not found:
        return ()
    kinds = ", ".join(f"{name!r}" for name in sorted(found))
    return (
        f"the readings of this model ({kinds}) stay behind: {format_name} has the weights that they were made from, "
        "unrotated, and other engines run those",
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)
