"""Steps through JSON text in place, for headers too large to build as Python objects; small files go to `json_file`.

Nothing of unbounded size is ever built: names and flat entries have limits, everything else is stepped over.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from typing import NoReturn

from subsecond.core.errors import FormatError
from subsecond.formats.fields import shorten
from subsecond.formats.json_file import refuse_duplicates

MAX_NAME_BYTES = 512
MAX_ENTRY_BYTES = 2048
MAX_SKIPPED_BYTES = 2**19
MAX_SKIPPED_DEPTH = 64
BUDGET_BYTES = 32 * 2**20

_DECODE = json.JSONDecoder(object_pairs_hook=refuse_duplicates).decode
_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\.){0,%d}"' % MAX_NAME_BYTES)
_ENTRY = re.compile(rb"\{[^{}]{0,%d}\}" % MAX_ENTRY_BYTES)
_PLAIN = re.compile(rb"[-+.0-9A-Za-z]+")
_SKIPPED = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]|[^\[\]{}"]+', re.DOTALL)


class JsonBudget:
    """What the headers of a checkpoint may still take, all together: memory, and bytes that are only stepped over."""

    def __init__(self, num_skipped_bytes: int = MAX_SKIPPED_BYTES) -> None:
        self.num_skipped_bytes = num_skipped_bytes
        self._num_bytes = BUDGET_BYTES

    def charge(self, num_bytes: int, what: str) -> None:
        """Take memory from the budget; FormatError when it does not suffice."""
        self._num_bytes -= num_bytes
        if self._num_bytes < 0:
            raise FormatError(f"{what} brings the headers above {BUDGET_BYTES} bytes of memory")


class JsonCursor:
    """A place in the JSON text `data[start:end]`; `where` names it in the messages of the FormatErrors."""

    def __init__(self, data: mmap.mmap, start: int, end: int, where: str, budget: JsonBudget) -> None:
        self._data = data
        self._at = start
        self._end = end
        self._where = where
        self._budget = budget

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; the caller consumes each value before the next key."""
        if not self.enter(b"{"):
            return
        while True:
            name = self.string()
            self._expect(b":")
            yield name
            if self._take(b"}"):
                return
            self._expect(b",")

    def elements(self) -> Iterator[None]:
        """Stop at each element of the list that begins here; the caller consumes it before the next one."""
        if not self.enter(b"["):
            return
        while True:
            yield
            if self._take(b"]"):
                return
            self._expect(b",")

    def enter(self, mark: bytes) -> bool:
        """Step into the list or object that `mark` opens, or over it when it is empty: then return False."""
        self._expect(mark)
        return not self._take(b"]" if mark == b"[" else b"}")

    def value(self) -> object:
        """The value here as plain objects; it is charged to the bytes that the budget lets be stepped over."""
        self._space()
        start = self._at
        self.skip()
        return self._decode(bytes(self._data[start : self._at]))

    def peek(self) -> bytes:
        """The first byte of the value here, empty at the end."""
        self._space()
        return bytes(self._data[self._at : min(self._at + 1, self._end)])

    @property
    def place(self) -> int:
        """The byte where reading goes on; another reader may move it past what it has read itself."""
        return self._at

    @place.setter
    def place(self, place: int) -> None:
        assert self._at <= place <= self._end
        self._at = place

    def string(self) -> str:
        """The string here, of at most `MAX_NAME_BYTES` characters."""
        return str(self._parse(_STRING, f"a string of at most {MAX_NAME_BYTES} characters"))

    def entry(self) -> dict[str, object]:
        """The object here, small and without objects inside."""
        parsed = self._parse(_ENTRY, f"an object of at most {MAX_ENTRY_BYTES} bytes without objects inside")
        assert isinstance(parsed, dict)
        return parsed

    def skip(self) -> None:
        """Step over the value here, whatever it is; only its brackets are looked at."""
        self._space()
        depth, start = 0, self._at
        while True:
            match = _SKIPPED.match(self._data, self._at, min(self._end, start + self._budget.num_skipped_bytes))
            if match is None:
                self._fail("a value that is not needed has no end, or is too large")
            token = match[0]
            if depth == 0 and token[:1] not in b'[{"':
                # a number or a word: it ends where the object around it goes on
                plain = _PLAIN.match(token)
                if plain is None:
                    self._fail(f"{self._found()} stands where a value is needed")
                self._at += plain.end()
                break
            depth += (token in (b"[", b"{")) - (token in (b"]", b"}"))
            self._at = match.end()
            if depth > MAX_SKIPPED_DEPTH:
                self._fail(f"values are nested more than {MAX_SKIPPED_DEPTH} deep")
            if depth == 0:
                break
        self._budget.num_skipped_bytes -= self._at - start

    def finish(self) -> None:
        """Check that only white space is left."""
        self._space()
        if self._at != self._end:
            self._fail("there is more after its end")

    def _parse(self, pattern: re.Pattern[bytes], expected: str) -> object:
        self._space()
        match = pattern.match(self._data, self._at, self._end)
        if match is None:
            self._fail(f"{self._found()} stands where {expected} is needed")
        self._at = match.end()
        return self._decode(match[0])

    def _decode(self, text: bytes) -> object:
        try:
            parsed: object = _DECODE(text.decode())
        except (ValueError, RecursionError) as error:
            self._fail(f"no valid JSON: {str(error)[:200]}")
        return parsed

    def _space(self) -> None:
        match = _SPACE.match(self._data, self._at, self._end)
        assert match is not None
        self._at = match.end()

    def _take(self, mark: bytes) -> bool:
        self._space()
        is_there = self._at < self._end and self._data[self._at : self._at + 1] == mark
        self._at += is_there
        return is_there

    def _expect(self, mark: bytes) -> None:
        if not self._take(mark):
            self._fail(f"{self._found()} stands where {mark.decode()!r} is needed")

    def _found(self) -> str:
        return shorten(bytes(self._data[self._at : min(self._end, self._at + 30)]))

    def _fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self._where}: {message} (at byte {self._at})")
