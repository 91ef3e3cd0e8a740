"""Decodes long lists of texts in JSON into arrays, without an object for each; knows nothing of what they mean.

The file is read in windows. Of a window, what lies outside its texts has to follow the list's layout to the letter;
the texts are taken out as they are, and only those with escapes are decoded one by one.
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError

WINDOW_BYTES = 2**18
"""An entry with its white space has to fit; small enough that the arrays of a window stay in the processor's cache."""
MAX_TEXT_BYTES = 2**12

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.uint32]


class Layout(Enum):
    """How a list is written. In the patterns a lone `"` stands for a text, and there is no white space.

    The first pattern is any number of entries, each with the comma behind it; the second is the last entry, with what
    closes the list.
    """

    TEXTS = (re.compile(rb'(?:",)*+'), re.compile(rb'"\]'))
    PAIRS = (re.compile(rb'(?:\[","\],)*+'), re.compile(rb'\[","\]\]'))
    NUMBERED = (re.compile(rb'(?:":(?:0|[1-9][0-9]{0,8}),)*+'), re.compile(rb'":(?:0|[1-9][0-9]{0,8})\}'))
    """An object of non-negative integers."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some texts: their UTF-8 in one piece, the bytes of each, and with `Layout.NUMBERED` its number."""

    blob: Bytes
    lengths: Numbers
    numbers: Numbers


class TextColumn:
    """Texts in one piece, growing up to limits; `what` names them in the FormatError beyond."""

    def __init__(self, max_texts: int, max_bytes: int, what: str) -> None:
        self._blob, self._lengths, self._numbers = bytearray(), array("I"), array("I")
        self._max_texts, self._max_bytes, self._what = max_texts, max_bytes, what

    def add(self, chunk: Chunk) -> None:
        """Append texts; FormatError above a limit."""
        if len(self._lengths) + len(chunk.lengths) > self._max_texts:
            raise FormatError(f"{self._what} are more than {self._max_texts}, more than can be needed")
        if len(self._blob) + len(chunk.blob) > self._max_bytes:
            raise FormatError(f"{self._what} have more than {self._max_bytes} bytes of text, more than can be needed")
        self._blob += chunk.blob.data
        self._lengths.frombytes(chunk.lengths.view(np.uint8).data)
        self._numbers.frombytes(chunk.numbers.view(np.uint8).data)

    @property
    def blob(self) -> Bytes:
        """The UTF-8 of all texts. While it is referenced, nothing can be added."""
        return np.frombuffer(self._blob, np.uint8)

    @property
    def lengths(self) -> Numbers:
        """The bytes of each text."""
        return np.frombuffer(self._lengths, np.uint32)

    @property
    def numbers(self) -> Numbers:
        """The number of each text, as far as it was read with one."""
        return np.frombuffer(self._numbers, np.uint32)


class JsonTexts:
    """The entries of the list in `data[place:end]`, from behind the bracket that opens it; it must not be empty.

    Iterating yields chunks and raises a FormatError that names `where` for anything else than the layout, for texts
    that are no UTF-8, and for texts above `MAX_TEXT_BYTES`. At the end, `place` is behind the closing bracket.
    """

    def __init__(self, data: mmap.mmap, place: int, end: int, layout: Layout, where: str) -> None:
        self._data, self._end, self._layout, self._where = data, end, layout, where
        self.place = place

    def __iter__(self) -> Iterator[Chunk]:
        is_last = False
        while not is_last:
            window = self._data[self.place : min(self.place + WINDOW_BYTES, self._end)]
            chunk, num_bytes, is_last = self._read(window)
            yield chunk
            self.place += num_bytes

    def _read(self, window: bytes) -> tuple[Chunk, int, bool]:
        """The whole entries of a window, the bytes that they take there, and whether they are the last ones."""
        raw = np.frombuffer(window, np.uint8)
        is_quote = raw == ord('"')
        backslashes = np.flatnonzero(raw == ord("\\")) if b"\\" in window else _NO_PLACES
        is_quote[_escaped(backslashes, len(raw))] = False
        is_inside = _between(is_quote)
        outside = _with(raw, is_inside, b" ")
        outline = outside.translate(None, b" \n\r\t")
        entries, last = self._layout.value
        whole = entries.match(outline)
        assert whole is not None
        closing = last.match(outline, whole.end())
        is_last, stop = closing is not None, (closing or whole).end()
        count = outline.count(b'"', 0, stop)
        if count == 0:
            self._fail("something stands where an entry is needed, it has no end, or it is too long")
        quotes = np.flatnonzero(is_quote)[: 2 * count]
        begins, ends = quotes[0::2] + 1, quotes[1::2]
        text_end = int(ends[-1])
        mark = b"," if not is_last else outline[stop - 1 : stop]
        num_bytes = window.index(mark, text_end) + 1
        if is_last and self._layout is Layout.PAIRS:
            num_bytes = window.index(mark, num_bytes) + 1
        numbers = _NO_NUMBERS
        if self._layout is Layout.NUMBERED:
            if _SPLIT_NUMBER.search(outside, 0, num_bytes) is not None:
                self._fail("white space stands within a number")
            numbers = np.fromstring(outline[: stop - 1].replace(b'":', b"").decode(), np.uint32, sep=",")
        is_text = (is_inside & ~is_quote)[:text_end]
        blob = _with(raw[:text_end], ~is_text, _NO_UTF8).translate(None, _NO_UTF8)
        self._check_text(raw, is_text, begins, blob)
        chunk = Chunk(np.frombuffer(blob, np.uint8), (ends - begins).astype(np.uint32), numbers)
        if len(backslashes):
            chunk = self._decode(chunk, backslashes[backslashes < text_end], begins)
        if chunk.lengths.max() > MAX_TEXT_BYTES:
            self._fail(f"a text has {chunk.lengths.max()} bytes; allowed are {MAX_TEXT_BYTES}")
        return chunk, num_bytes, is_last

    def _check_text(self, raw: Bytes, is_inside: NDArray[np.bool_], begins: NDArray[np.int64], blob: bytes) -> None:
        if (is_inside & (raw[: len(is_inside)] < 32)).any():
            self._fail("a text holds a control character that is not escaped")
        try:
            blob.decode()
        except UnicodeDecodeError as error:
            self._fail(f"no valid UTF-8: {error.reason}")
        # all texts together are UTF-8, so each is if none begins within a character
        if len(blob) != int(np.count_nonzero(is_inside)) or (raw[begins] & 0xC0 == 0x80).any():
            self._fail("no valid UTF-8")

    def _decode(self, chunk: Chunk, backslashes: NDArray[np.int64], begins: NDArray[np.int64]) -> Chunk:
        """The same chunk with its escapes replaced by what they mean."""
        if not len(backslashes):
            return chunk
        escaped = np.searchsorted(begins, backslashes, "right") - 1
        escaped = escaped[np.diff(escaped, prepend=-1) != 0]
        blob, ends = chunk.blob.tobytes(), np.cumsum(chunk.lengths, dtype=np.int64)
        ends = ends[escaped]
        spans = list(zip((ends - chunk.lengths[escaped]).tolist(), ends.tolist(), strict=True))
        try:
            texts = json.loads(b'["' + b'","'.join([blob[start:end] for start, end in spans]) + b'"]')
            decoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        except UnicodeEncodeError:
            self._fail("a text holds half of a surrogate pair, which is no text")
        except ValueError as error:
            self._fail(f"no valid JSON: {str(error)[:200]}")
        pieces, at = [], 0
        for (start, end), text in zip(spans, decoded, strict=True):
            pieces += [blob[at:start], text]
            at = end
        lengths = chunk.lengths.copy()
        lengths[escaped] = list(map(len, decoded))
        return Chunk(np.frombuffer(b"".join([*pieces, blob[at:]]), np.uint8), lengths, chunk.numbers)

    def _fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self._where}: {message} (from byte {self.place})")


_NO_NUMBERS = np.zeros(0, np.uint32)
_NO_PLACES = np.zeros(0, np.int64)
_NO_UTF8 = b"\xff"
"""A byte that is no part of any character."""
_SPLIT_NUMBER = re.compile(rb"[0-9][ \n\r\t]+[0-9]")


def _with(raw: Bytes, is_replaced: NDArray[np.bool_], mark: bytes) -> bytes:
    """The bytes with some of them replaced."""
    mask = -is_replaced.view(np.uint8)
    return bytes((raw & ~mask) | (mask & np.uint8(mark[0])))


def _between(is_quote: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each byte is an opening quote or between it and the closing one: an odd number of quotes up to there.

    The parities of 64 bytes are found at once, which is ten times as fast as counting byte by byte.
    """
    bits = np.packbits(is_quote, bitorder="little")
    words = np.concatenate((bits, np.zeros(-len(bits) % 8, np.uint8))).view("<u8")
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << np.uint64(shift)
    parities = words >> np.uint64(63)
    words ^= -(np.bitwise_xor.accumulate(parities) ^ parities)
    return np.unpackbits(words.view(np.uint8), count=len(is_quote), bitorder="little").view(np.bool_)


def _escaped(backslashes: NDArray[np.int64], num_bytes: int) -> NDArray[np.int64]:
    """The places behind a backslash that escapes: the first, third and so on of a run."""
    begins_run = np.ones(len(backslashes), np.bool_)
    begins_run[1:] = np.diff(backslashes) != 1
    run_begin = np.maximum.accumulate(np.where(begins_run, backslashes, 0))
    places: NDArray[np.int64] = backslashes[(backslashes - run_begin) % 2 == 0] + 1
    return places[places < num_bytes]
