"""What long work has done so far, kept on disk line by line, so that work that was ended goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from subsecond.models.store import home

MAX_LINE_CHARS = 64 * 2**20


class Journal:
    """Results by key, of one piece of work; each is on disk before the next is begun.

    Work whose inputs are the same finds what it had done; the file of other work is another one.
    """

    def __init__(self, path: Path) -> None:
        """Take up what the file holds; a last line that was cut off counts as not written."""
        self.path = path
        self._results: dict[str, Any] = {}
        self._num_bytes = 0
        if path.exists():
            self._read()
        path.parent.mkdir(parents=True, exist_ok=True)

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def __getitem__(self, key: str) -> Any:
        return self._results[key]

    def __len__(self) -> int:
        return len(self._results)

    def keys(self) -> list[str]:
        """The keys of all results, in the order in which they were written."""
        return list(self._results)

    def put(self, key: str, value: Any) -> None:
        """Add a result, which is JSON data."""
        line = json.dumps([key, value], allow_nan=False).encode() + b"\n"
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.seek(self._num_bytes)
            file.write(line)
            file.truncate()
        self._num_bytes += len(line)
        self._results[key] = value

    def discard(self) -> None:
        """Delete the file: the work is done, or shall be done anew."""
        self.path.unlink(missing_ok=True)
        self._results.clear()
        self._num_bytes = 0

    def _read(self) -> None:
        with self.path.open("rb") as file:
            while line := file.readline(MAX_LINE_CHARS):
                try:
                    entry = json.loads(line)
                except ValueError:
                    return
                if not (line.endswith(b"\n") and isinstance(entry, list) and len(entry) == 2):
                    return
                self._results[str(entry[0])] = entry[1]
                self._num_bytes += len(line)


def journal_path(kind: str, inputs: Mapping[str, Any]) -> Path:
    """Where the journal of that work lies. `inputs` is JSON data with all that the results depend on."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return home() / "unfinished" / f"{kind}-{digest[:24]}.jsonl"


@contextmanager
def resumed(kind: str, inputs: Mapping[str, Any], *, is_fresh: bool = False) -> Iterator[Journal]:
    """The journal of that work, deleted when the block ends without an error; `is_fresh` forgets what was done."""
    journal = Journal(journal_path(kind, inputs))
    if is_fresh:
        journal.discard()
    yield journal
    journal.discard()
