"""Finds many texts at once by a 64-bit hash, without an object for each; reads no file.

A text's hash is a sum of its four-byte words, each multiplied by a random number of its own ("multilinear" hashing), so
no file can be made to have texts that collide: two texts share a hash with a chance of 2**-64.
"""

from __future__ import annotations

import secrets
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from subsecond.formats.json_texts import MAX_TEXT_BYTES

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_BLOCK_TEXTS = 2**15
"""Arrays of this many numbers stay in the processor's cache."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class TextHasher:
    """Hashes texts with keys that are drawn once for each hasher."""

    def __init__(self) -> None:
        num_keys = MAX_TEXT_BYTES // 4 + 2
        self._keys = np.frombuffer(secrets.token_bytes(16 * num_keys), np.uint64).reshape(2, num_keys)

    def hash(self, blob: Bytes, begins: Places, lengths: Places) -> Hashes:
        """The hash of each text `blob[begin : begin + length]`; of texts above `MAX_TEXT_BYTES` of their begin."""
        padded = np.concatenate((blob, np.zeros(8, np.uint8)))
        words = np.ndarray((len(padded) - 7,), "<u8", padded.data, strides=(1,))
        hashes = np.empty(len(begins), np.uint64)
        for start in range(0, len(begins), _BLOCK_TEXTS):
            part = slice(start, start + _BLOCK_TEXTS)
            hashes[part] = self._hash_block(words, begins[part], np.minimum(lengths[part], MAX_TEXT_BYTES))
        return hashes

    def _hash_block(self, words: Hashes, begins: Places, lengths: Places) -> Hashes:
        keys, sizes = self._keys, lengths.astype(np.uint64)
        word = words[begins] & _MASKS[np.minimum(lengths, 8)]
        low, high = word & _LOW, word >> _HALF
        sums = [sizes * row[0] + row[1] + low * row[2] + high * row[3] for row in keys]
        active, place = np.flatnonzero(lengths > 8), 8
        while len(active):
            left = np.minimum(lengths[active] - place, 8)
            word = words[begins[active] + place] & _MASKS[left]
            low, high = word & _LOW, word >> _HALF
            column = place // 4 + 2
            for row, total in zip(keys, sums, strict=True):
                total[active] += low * row[column] + high * row[column + 1]
            place += 8
            active = active[lengths[active] > place]
        # the upper half of each sum is the part that is proven to be uniform
        combined: Hashes = (sums[0] >> _HALF << _HALF) | (sums[1] >> _HALF)
        return combined


_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


class TextIndex:
    """The places of distinct texts by hash."""

    def __init__(self, hashes: Hashes, places: NDArray[np.int32]) -> None:
        """Take ascending `hashes`, none of them twice, and what `find` is to return for each."""
        self._hashes, self._places = hashes, places
        bits = max(len(hashes).bit_length() + 1, 4)
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((hashes >> self._shift).astype(np.int64), minlength=(1 << bits))
        self._first = np.zeros(1 << bits, np.int32)
        np.cumsum(counts[:-1], out=self._first[1:])

    def find(self, hashes: Hashes) -> NDArray[np.int32]:
        """The place of each text with one of these hashes, -1 where there is none."""
        if not len(self._hashes):
            return np.full(len(hashes), -1, np.int32)
        end = len(self._hashes) - 1
        at = np.minimum(self._first[hashes >> self._shift], end)
        behind = np.flatnonzero(self._hashes[at] < hashes)
        while len(behind := behind[at[behind] < end]):
            at[behind] += 1
            behind = behind[self._hashes[at[behind]] < hashes[behind]]
        return np.where(self._hashes[at] == hashes, self._places[at], np.int32(-1))


def last_of_equal(hashes: Hashes) -> Places:
    """The places of distinct hashes in ascending order of hash; of equal ones the last place."""
    if not len(hashes):
        return np.zeros(0, np.int64)
    order = np.argsort(hashes)
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = hashes[order[1:]] != hashes[order[:-1]]
    # a stable sort would put the last of equal ones last, but takes three times as long
    return order if is_first.all() else np.maximum.reduceat(order, np.flatnonzero(is_first))


def checksums(blob: Bytes, begins: Places, lengths: Places) -> NDArray[np.uint32]:
    """The CRC-32 of each text."""
    # the long ones first, so that those that have a byte at some place are always the first ones
    order = np.argsort(-lengths)
    begins, descending = begins[order], lengths[order]
    sums, count, place = np.full(len(order), 0xFFFFFFFF, np.uint32), len(order), 0
    while count := int(np.searchsorted(-descending[:count], -place)):
        low = sums[:count].astype(np.uint8) ^ blob[begins[:count] + place]
        sums[:count] = _CRC_OF_BYTE[low] ^ (sums[:count] >> np.uint32(8))
        place += 1
    placed = np.empty_like(sums)
    placed[order] = ~sums
    return placed


_CRC_OF_BYTE = np.array([crc32(bytes([byte ^ 0xFF])) ^ 0xFF000000 for byte in range(256)], np.uint32)
"""The step of CRC-32 for each value of its low byte, from the library's results for single bytes."""
