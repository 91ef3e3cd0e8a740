"""Looks up tokens by text and merges by pair: from a vocabulary in memory or, without reading it all, from a saved one.

The saved form holds sorted arrays, so opening it costs nothing but reading the file; a 150k-token vocabulary would
otherwise take a third of a second to put into hash tables, longer than answering takes.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, overload
from zlib import crc32

import numpy as np

from subsecond.core.errors import FormatError
from subsecond.models.vocabulary import MAX_MERGES, Vocabulary

_U32, _U64 = "I", "Q"
_KINDS: Mapping[str, str] = {"ends": _U32, "hashes": _U32, "hashed": _U32, "pairs": _U64, "ranks": _U32}
TABLE_FIELDS = ("blob", *_KINDS)
MAX_SAME_HASH = 8
"""Tokens with one and the same hash; of 262k tokens two share one by chance, eight do not in any real vocabulary."""

assert array(_U32).itemsize == 4 and array(_U64).itemsize == 8

Rank = int | tuple[float, int, int, int]


class TokenTable(Protocol):
    """What merging and decoding need of a vocabulary. Tokens that are held out have a text but are never found."""

    def text(self, token_id: int) -> str:
        """The text of a token, which must exist."""

    def find(self, text: str) -> int | None:
        """The token that a text is, None if it is none; of equal texts the last id."""

    def rank(self, left: int, right: int) -> Rank | None:
        """How early two neighbours are merged, lower first; None if never."""

    def entries(self) -> dict[str, int]:
        """All tokens that can be found, by text."""

    def merges(self) -> Iterator[tuple[str, str]]:
        """All merges as (left, right), in order of rank."""


class MemoryTable:
    """A table over a vocabulary in memory. The hash tables are built when first needed."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = vocabulary.tokens
        self._held_out = vocabulary.held_out
        self._merges = vocabulary.merges
        self._scores = vocabulary.scores

    def text(self, token_id: int) -> str:
        """The text of a token, which must exist."""
        return self._tokens[token_id]

    def find(self, text: str) -> int | None:
        """The token that a text is, None if it is none."""
        return self._ids.get(text)

    def rank(self, left: int, right: int) -> Rank | None:
        """How early two neighbours are merged, None if never."""
        tokens = self._tokens
        if self._merges is not None:
            return self._ranks.get(f"{tokens[left]} {tokens[right]}")
        assert self._scores is not None
        merged = self._ids.get(tokens[left] + tokens[right])
        return None if merged is None else _score_rank(self._scores, merged, len(tokens[left]), len(tokens[right]))

    def entries(self) -> dict[str, int]:
        """All tokens that can be found, by text."""
        return dict(self._ids)

    def merges(self) -> Iterator[tuple[str, str]]:
        """All merges in order of rank; FormatError when one is damaged."""
        if self._merges is None:
            return iter(self._derive_merges())
        return (_pair(merge) for merge in self._merges)

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids = dict(zip(self._tokens, range(len(self._tokens)), strict=True))
        for text in self._held_out:
            ids.pop(text, None)
        ids.pop("", None)
        return ids

    @cached_property
    def _ranks(self) -> dict[str, int]:
        assert self._merges is not None
        return dict(zip(self._merges, range(len(self._merges)), strict=True))

    def _derive_merges(self) -> list[tuple[str, str]]:
        """Every way to make a token out of two others, the ones that make high scores first."""
        assert self._scores is not None
        ids, scores = self._ids, self._scores
        ranked = []
        for text, token_id in ids.items():
            for cut in range(1, len(text)):
                left, right = text[:cut], text[cut:]
                if left in ids and right in ids:
                    ranked.append((_score_rank(scores, token_id, len(left), len(right)), left, right))
        if len(ranked) > MAX_MERGES:
            raise FormatError(f"the vocabulary implies {len(ranked)} merges; allowed are {MAX_MERGES}")
        ranked.sort()
        return [(left, right) for _, left, right in ranked]


def _score_rank(scores: Sequence[float], merged: int, left: int, right: int) -> Rank:
    """High scores first; of equal ones long left parts, then long right parts, then low ids."""
    return (-scores[merged], -left, -right, merged)


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise FormatError(f"the merge {merge[:50]!r} is not two texts with a space between them")
    return left, right


@dataclass(frozen=True, slots=True)
class PackedTable:
    """A table in the form of its file.

    `blob`: the UTF-8 of all tokens; token `i` ends at byte `ends[i]`. `hashes`: the CRC-32 of the tokens that can be
    found, ascending; `hashed[i]` is the id of the token with `hashes[i]`. `pairs`: `left << 32 | right` of all merges,
    ascending; `ranks[i]` is the rank of `pairs[i]`.
    """

    blob: bytes
    ends: Sequence[int]
    hashes: Sequence[int]
    hashed: Sequence[int]
    pairs: Sequence[int]
    ranks: Sequence[int]

    @classmethod
    def pack(cls, tokens: Sequence[str], table: TokenTable) -> PackedTable:
        """Write all of `table`; FormatError when a merge names something that is no token."""
        encoded = [text.encode("utf-8", "surrogateescape") for text in tokens]
        ends, end = array(_U32), 0
        for each in encoded:
            end += len(each)
            ends.append(end)
        entries = table.entries()
        hashed = sorted((crc32(encoded[token_id]), token_id) for token_id in entries.values())
        ranks: dict[int, int] = {}
        for rank, (left, right) in enumerate(table.merges()):
            check_merge(entries, left, right)
            ranks[entries[left] << 32 | entries[right]] = rank
        pairs = sorted(ranks)
        return cls(
            b"".join(encoded),
            ends,
            array(_U32, [crc for crc, _ in hashed]),
            array(_U32, [token_id for _, token_id in hashed]),
            array(_U64, pairs),
            array(_U32, [ranks[each] for each in pairs]),
        )

    @classmethod
    def unpack(cls, vocab_size: int, arrays: Mapping[str, bytes]) -> PackedTable:
        """Check and take the arrays of a file; FormatError when their sizes or ids are impossible.

        What is checked suffices for every lookup to stay inside; wrong orders only make lookups fail.
        """
        table = cls(arrays["blob"], **{name: _read(arrays[name], kind, name) for name, kind in _KINDS.items()})
        if len(table.ends) != vocab_size or (table.ends[-1] if vocab_size else 0) != len(table.blob):
            raise FormatError(f"the token texts do not have the {vocab_size} ends that they should have")
        ends, hashed = (np.frombuffer(arrays[name], "<u4") for name in ("ends", "hashed"))
        if (ends[1:] < ends[:-1]).any():
            raise FormatError("the ends of the token texts are not in ascending order")
        if len(table.hashes) != len(hashed) or (hashed >= vocab_size).any():
            raise FormatError(f"the tokens by hash are not pairs of a hash and a token id below {vocab_size}")
        if len(table.pairs) != len(table.ranks) or len(table.pairs) > MAX_MERGES:
            raise FormatError(f"there are {len(table.pairs)} pairs and {len(table.ranks)} ranks of merges")
        return table

    def arrays(self) -> Mapping[str, bytes]:
        """The contents as `unpack` takes them."""
        return {"blob": self.blob, **{name: _write(getattr(self, name), kind) for name, kind in _KINDS.items()}}

    def text(self, token_id: int) -> str:
        """The text of a token, which must exist."""
        return self._bytes(token_id).decode("utf-8", "surrogateescape")

    def find(self, text: str) -> int | None:
        """The token that a text is, None if it is none; half a surrogate pair, which has no bytes, is in no token."""
        try:
            needle = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return None
        crc = crc32(needle)
        place = bisect_left(self.hashes, crc)
        for each in range(place, min(place + MAX_SAME_HASH, len(self.hashes))):
            if self.hashes[each] != crc:
                break
            if self._bytes(self.hashed[each]) == needle:
                return self.hashed[each]
        return None

    def rank(self, left: int, right: int) -> Rank | None:
        """How early two neighbours are merged, None if never."""
        pair = left << 32 | right
        place = bisect_left(self.pairs, pair)
        return self.ranks[place] if place < len(self.pairs) and self.pairs[place] == pair else None

    def entries(self) -> dict[str, int]:
        """All tokens that can be found, by text."""
        return {self.text(token_id): token_id for token_id in self.hashed}

    def merges(self) -> Iterator[tuple[str, str]]:
        """All merges in order of rank; FormatError when one is damaged."""
        size = len(self.ends)
        for place in sorted(range(len(self.pairs)), key=self.ranks.__getitem__):
            left, right = self.pairs[place] >> 32, self.pairs[place] & 0xFFFFFFFF
            if left >= size or right >= size:
                raise FormatError(f"a merge names token {max(left, right)}; the vocabulary has {size}")
            yield self.text(left), self.text(right)

    def _bytes(self, token_id: int) -> bytes:
        return self.blob[self.ends[token_id - 1] if token_id else 0 : self.ends[token_id]]


class PackedTexts(Sequence[str]):
    """The token texts of a packed table by id, decoded when asked for."""

    def __init__(self, table: PackedTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        ids = range(len(self))[index]
        return self._table.text(ids) if isinstance(ids, int) else [self._table.text(each) for each in ids]


def is_utf8(text: str) -> bool:
    """Whether the text has a UTF-8 form, which half of a surrogate pair has not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_merge(entries: Mapping[str, int], left: str, right: str) -> None:
    """Raise FormatError unless both parts of a merge and what they make are tokens that text may become."""
    for text in (left, right, left + right):
        if text not in entries:
            raise FormatError(f"merges and tokens do not fit together: {text[:50]!r} is no token that text may become")


def _read(content: bytes, kind: str, name: str) -> Sequence[int]:
    numbers = array(kind)
    if len(content) % numbers.itemsize:
        raise FormatError(f"the field {name!r} has {len(content)} bytes, which is no multiple of {numbers.itemsize}")
    numbers.frombytes(content)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _write(numbers: Sequence[int], kind: str) -> bytes:
    copied = array(kind, numbers)
    if sys.byteorder == "big":
        copied.byteswap()
    return copied.tobytes()
