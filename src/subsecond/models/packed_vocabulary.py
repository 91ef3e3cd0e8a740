"""Makes the lookup table of a vocabulary out of long columns of texts, without an object for each; reads no file."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError
from subsecond.formats.fields import shorten
from subsecond.formats.json_texts import TextColumn
from subsecond.models.text_index import Bytes, Hashes, Places, TextHasher, TextIndex, checksums, last_of_equal
from subsecond.models.token_table import MAX_SAME_HASH, PackedTable
from subsecond.models.vocabulary import MAX_VOCAB_SIZE

_BLOCK_TEXTS = 2**15
_BLOCK_BYTES = 2**17
"""What is worked on at once, as each text and byte takes many times its size meanwhile."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """An entry of `added_tokens`, as far as it matters here; `strips` is the white space it takes, (left, right)."""

    token_id: int
    text: str
    is_special: bool
    strips: tuple[bool, bool]


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """All tokens: their table, without merges yet, and what finds many of them at once."""

    table: PackedTable
    hasher: TextHasher
    index: TextIndex

    @classmethod
    def pack(cls, vocab: TextColumn, added: Sequence[AddedToken], where: str) -> PackedTokens:
        """Put the texts in order of their ids, `vocab.numbers`; ids that nothing has are empty texts.

        Of equal texts in `vocab` the last counts. FormatError when ids are spread, or used for two texts.
        """
        hasher = TextHasher()
        lengths = vocab.lengths.astype(np.int64)
        begins = np.cumsum(lengths) - lengths
        hashes = hasher.hash(vocab.blob, begins, lengths)
        kept = last_of_equal(hashes)
        ids = vocab.numbers[kept].astype(np.int64)
        size = _vocab_size(ids, [each.token_id for each in added], where)
        source = np.full(size, -1, np.int32)
        source[ids] = kept
        more = _added_texts(vocab.blob, begins, lengths, source, added, where)
        tail = np.frombuffer(b"".join(more.values()), np.uint8)
        tail_lengths = np.fromiter(map(len, more.values()), np.int64, len(more))
        tail_begins = np.cumsum(tail_lengths) - tail_lengths
        source[list(more)] = np.arange(len(begins), len(begins) + len(more), dtype=np.int32)
        # what source -1 picks
        empty = np.zeros(1, np.int64)
        lengths = np.concatenate((lengths, tail_lengths, empty))[source]
        begins = np.concatenate((begins, tail_begins + len(vocab.blob), empty))[source]
        hashes = np.concatenate((hashes, hasher.hash(tail, tail_begins, tail_lengths), empty.astype(np.uint64)))[source]
        blob = _gather(np.concatenate((vocab.blob, tail)), begins, lengths)
        return cls._index(blob, lengths, hashes, hasher, where)

    @classmethod
    def _index(cls, blob: Bytes, lengths: Places, hashes: Hashes, hasher: TextHasher, where: str) -> PackedTokens:
        ends = np.cumsum(lengths)
        spelled = np.flatnonzero(lengths)
        found = spelled[last_of_equal(hashes[spelled])]
        index = TextIndex(hashes[found], found.astype(np.int32))
        found.sort()
        sums = checksums(blob, (ends - lengths)[found], lengths[found])
        order = np.argsort(sums, kind="stable")
        sums = sums[order]
        if (sums[MAX_SAME_HASH:] == sums[:-MAX_SAME_HASH]).any():
            raise FormatError(f"{where}: more than {MAX_SAME_HASH} tokens have one and the same checksum")
        table = PackedTable(
            blob.tobytes(), _array("I", ends), _array("I", sums), _array("I", found[order]), array("Q"), array("I")
        )
        return cls(table, hasher, index)

    def finish(self, held_out: Iterable[str], parts: TextColumn | None, where: str) -> PackedTable:
        """The table in which held-out tokens are not found, with merges of two texts of `parts` each.

        Merges that have to do with a held-out token are left out, as no text may become one; FormatError for a merge
        of or into something that is no token.
        """
        # the last is for texts that are no token
        is_held = np.zeros(len(self.table.ends) + 1, np.bool_)
        is_held[[token_id for text in held_out if (token_id := self.table.find(text)) is not None]] = True
        hashes, hashed = (np.array(each, np.uint32) for each in (self.table.hashes, self.table.hashed))
        kept = ~is_held[hashed]
        table = replace(self.table, hashes=_array("I", hashes[kept]), hashed=_array("I", hashed[kept]))
        if parts is None:
            return table
        pairs = np.frombuffer(self._pairs(parts, is_held, where), np.uint64)
        ranks = last_of_equal(pairs)
        return replace(table, pairs=_array("Q", pairs[ranks]), ranks=_array("I", ranks))

    def _pairs(self, parts: TextColumn, is_held: NDArray[np.bool_], where: str) -> array[int]:
        """The merges in their order as `left << 32 | right`."""
        blob, lengths, begin = parts.blob, parts.lengths, 0
        pairs = array("Q")
        for start in range(0, len(lengths), _BLOCK_TEXTS):
            block = lengths[start : start + _BLOCK_TEXTS].astype(np.int64)
            end = begin + int(block.sum())
            pairs.frombytes(self._block_pairs(blob[begin:end], block, is_held, where).view(np.uint8).data)
            begin = end
        return pairs

    def _block_pairs(self, blob: Bytes, lengths: Places, is_held: NDArray[np.bool_], where: str) -> Hashes:
        begins = np.cumsum(lengths) - lengths
        found = self.index.find(self.hasher.hash(blob, begins, lengths))
        left, right = found[0::2], found[1::2]
        merged = self.index.find(self.hasher.hash(blob, begins[0::2], lengths[0::2] + lengths[1::2]))
        kept = ~(is_held[left] | is_held[right] | is_held[merged])
        missing = np.flatnonzero(kept & ((left < 0) | (right < 0) | (merged < 0)))
        if len(missing):
            first = 2 * int(missing[0])
            texts = [
                blob[begins[each] : begins[each] + lengths[each]].tobytes().decode("utf-8", "replace")
                for each in (first, first + 1)
            ]
            raise FormatError(
                f"{where}: merges and tokens do not fit together: {shorten(' '.join(texts))} takes or makes something "
                "that is no token that text may become"
            )
        return left[kept].astype(np.uint64) << np.uint64(32) | right[kept].astype(np.uint64)


def _vocab_size(ids: Places, added_ids: Sequence[int], where: str) -> int:
    """The number of ids; FormatError when they are spread, or `ids` has one twice."""
    given = np.concatenate((ids, np.array(added_ids, np.int64)))
    if not len(given):
        raise FormatError(f"{where}: the vocabulary is empty")
    high = int(given.max())
    is_used = np.zeros(min(high, MAX_VOCAB_SIZE) + 1, np.bool_)
    is_used[np.minimum(given, MAX_VOCAB_SIZE)] = True
    if high >= min(MAX_VOCAB_SIZE, 2 * int(is_used.sum()) + 1024):
        raise FormatError(
            f"{where}: {len(given)} tokens have ids from {given.min()} to {high}; they must begin at 0, lie close "
            f"together and below {MAX_VOCAB_SIZE}"
        )
    if np.bincount(ids, minlength=1).max() > 1:
        raise FormatError(f"{where}: two texts in field 'vocab' have the same id")
    return high + 1


def _added_texts(
    blob: Bytes, begins: Places, lengths: Places, source: NDArray[np.int32], added: Iterable[AddedToken], where: str
) -> dict[int, bytes]:
    """The text of each added token by id; FormatError when the id has another text already."""
    texts: dict[int, bytes] = {}
    for each in added:
        text, known = each.text.encode("utf-8", "surrogateescape"), texts.get(each.token_id, b"")
        place = int(source[each.token_id])
        if not known and place >= 0:
            known = blob[begins[place] : begins[place] + lengths[place]].tobytes()
        if known not in (b"", text):
            other = known.decode("utf-8", "surrogateescape")
            raise FormatError(f"{where}: {shorten(each.text)} and {shorten(other)} both have id {each.token_id}")
        texts[each.token_id] = text
    return texts


def _gather(blob: Bytes, begins: Places, lengths: Places) -> Bytes:
    """The texts one behind the other."""
    ends = np.cumsum(lengths)
    gathered = np.empty(int(ends[-1]), np.uint8)
    start = first = 0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, first + _BLOCK_BYTES)), start + 1)
        part, end = slice(start, stop), int(ends[stop - 1])
        shifts = begins[part] - (ends[part] - lengths[part])
        gathered[first:end] = blob[np.arange(first, end) + np.repeat(shifts, lengths[part])]
        start, first = stop, end
    return gathered


def _array(kind: str, numbers: NDArray[np.generic]) -> array[int]:
    packed = array(kind)
    packed.frombytes(numbers.astype(kind, copy=False).view(np.uint8).data)
    return packed
