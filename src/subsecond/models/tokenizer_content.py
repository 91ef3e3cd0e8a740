"""Steps through a Hugging Face tokenizer.json: its vocabulary and merges become columns, the rest plain objects.

The file is mapped and what it may hold is bounded, so that reading takes less than 64 MB; meaning is for the caller.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.fields import read_field, read_int, shorten
from subsecond.formats.json_cursor import JsonBudget, JsonCursor
from subsecond.formats.json_file import MAX_JSON_BYTES
from subsecond.formats.json_texts import Chunk, JsonTexts, Layout, TextColumn
from subsecond.models.packed_vocabulary import AddedToken
from subsecond.models.vocabulary import MAX_VOCAB_SIZE

MAX_FILE_BYTES = 2**26
MAX_TOKENS, MAX_TOKEN_BYTES = 2**19, 2**23
"""Of the field "vocab". The largest that is published has 262k tokens with 2 MB of text."""
MAX_MERGES, MAX_MERGE_BYTES = 2**20, 2**24
"""The longest list that is published has 581k merges."""
MAX_ADDED, MAX_ADDED_BYTES, MAX_ADDED_JSON_BYTES = 2**16, 2**21, 2**24
"""Entries of "added_tokens", their texts and the JSON of all together; models of speech have 30,000."""
_MAX_ENTRY_JSON_BYTES = 2**15

Json = Mapping[str, object]


@dataclass(slots=True)
class TokenizerContent:
    """What a file holds. `model` lacks the vocabulary and merges, which are None if the file has no such thing.

    `vocab.numbers` are the token ids; `merges` holds two texts for each merge.
    """

    sections: dict[str, object] = field(default_factory=dict)
    model: dict[str, object] = field(default_factory=dict)
    added: list[AddedToken] = field(default_factory=list)
    vocab: TextColumn | None = None
    merges: TextColumn | None = None


def read_tokenizer_content(path: Path) -> TokenizerContent:
    """Read the file; InputError if it cannot be read, FormatError or UnsupportedError for what it may not hold."""
    if not path.is_file():  # reading a pipe would wait for whoever writes to it
        raise InputError(f"cannot read {path}: there is no such file")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise FormatError(f"{path} is larger than {MAX_FILE_BYTES} bytes, more than it can need")
            if size == 0:
                raise FormatError(f"{path} is empty; it must hold an object")
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    with data:
        return _Reader(data, str(path)).read()


class _Reader:
    def __init__(self, data: mmap.mmap, where: str) -> None:
        start = 3 if data[:3] == b"\xef\xbb\xbf" else 0
        self._data, self._where = data, where
        self._cursor = JsonCursor(data, start, len(data), where, JsonBudget(MAX_JSON_BYTES))
        self._content = TokenizerContent()

    def read(self) -> TokenizerContent:
        content, seen = self._content, set()
        for name in self._cursor.members():
            if name in seen:
                raise FormatError(f"{self._where}: field {shorten(name)} occurs twice")
            seen.add(name)
            if name == "model":
                self._read_model()
            elif name == "added_tokens":
                self._read_added()
            else:
                content.sections[name] = self._cursor.value()
        self._cursor.finish()
        if "model" not in seen:
            raise FormatError(f"{self._where}: field 'model' is missing; it must be an object")
        return content

    def _read_model(self) -> None:
        model, seen = self._content.model, set()
        for name in self._cursor.members():
            if name in seen:
                raise FormatError(f"{self._where}: field {shorten(name)} occurs twice in the model")
            seen.add(name)
            if name == "vocab" and self._cursor.peek() == b"{":
                self._content.vocab = self._read_vocab()
            elif name == "merges" and self._cursor.peek() == b"[":
                self._content.merges = self._read_merges()
            elif name == "vocab" and model.get("type") == "Unigram":
                # its list is as long as a vocabulary, and of no use
                raise UnsupportedError(
                    f"{self._where}: the model is of type 'Unigram'; supported are BPE and WordPiece"
                )
            else:
                model[name] = self._cursor.value()

    def _read_added(self) -> None:
        budget, num_bytes = JsonBudget(), 0
        cursor = JsonCursor(self._data, self._cursor.place, len(self._data), self._where, budget)
        for _ in cursor.elements():
            budget.num_skipped_bytes = _MAX_ENTRY_JSON_BYTES
            token = _added_token(cursor.value(), self._where)
            self._content.added.append(token)
            num_bytes += len(token.text.encode("utf-8", "surrogateescape"))
            is_long = cursor.place - self._cursor.place > MAX_ADDED_JSON_BYTES
            if is_long or num_bytes > MAX_ADDED_BYTES or len(self._content.added) > MAX_ADDED:
                raise FormatError(
                    f"{self._where}: field 'added_tokens' is too long; allowed are {MAX_ADDED} tokens with "
                    f"{MAX_ADDED_BYTES} bytes of text"
                )
        self._cursor.place = cursor.place

    def _read_vocab(self) -> TextColumn:
        column = TextColumn(MAX_TOKENS, MAX_TOKEN_BYTES, f"{self._where}: the texts in field 'vocab'")
        if self._cursor.enter(b"{"):
            where = f"{self._where}: field 'vocab' must map texts to token ids"
            self._fill(column, JsonTexts(self._data, self._cursor.place, len(self._data), Layout.NUMBERED, where))
        return column

    def _read_merges(self) -> TextColumn:
        column = TextColumn(2 * MAX_MERGES, MAX_MERGE_BYTES, f"{self._where}: the texts in field 'merges'")
        if self._cursor.enter(b"["):
            layout = Layout.PAIRS if self._cursor.peek() == b"[" else Layout.TEXTS
            where = f"{self._where}: field 'merges' must hold pairs of texts, or each as one text with a space between"
            texts = JsonTexts(self._data, self._cursor.place, len(self._data), layout, where)
            split = _checked_pairs if layout is Layout.PAIRS else _split_at_space
            self._fill(column, texts, (split(chunk, self._where) for chunk in texts))
        return column

    def _fill(self, column: TextColumn, texts: JsonTexts, chunks: Iterable[Chunk] | None = None) -> None:
        for chunk in texts if chunks is None else chunks:
            column.add(chunk)
        self._cursor.place = texts.place


def _added_token(entry: object, where: str) -> AddedToken:
    if not isinstance(entry, dict):
        raise FormatError(f"{where}: field 'added_tokens' must be a list of objects")
    text = read_field(entry, "content", str, where)
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise FormatError(f"{where}: a token holds half of a surrogate pair, which is no text") from None
    if read_flag(entry, "single_word", where):
        raise UnsupportedError(f"{where}: token {shorten(text)} is only found as a whole word")
    return AddedToken(
        read_int(entry, "id", where, 0, MAX_VOCAB_SIZE - 1),
        text,
        read_flag(entry, "special", where),
        (read_flag(entry, "lstrip", where), read_flag(entry, "rstrip", where)),
    )


def _checked_pairs(chunk: Chunk, where: str) -> Chunk:
    if not chunk.lengths.all():
        raise FormatError(f"{where}: field 'merges' holds something that is not made of two texts")
    if (chunk.blob == ord(" ")).any():
        raise UnsupportedError(f"{where}: field 'merges' holds tokens with a space in them")
    return chunk


def _split_at_space(chunk: Chunk, where: str) -> Chunk:
    """Two texts for each that has a space between them."""
    spaces, ends = np.flatnonzero(chunk.blob == ord(" ")), np.cumsum(chunk.lengths, dtype=np.int64)
    begins = ends - chunk.lengths
    if len(spaces) != len(ends) or not ((begins < spaces) & (spaces < ends - 1)).all():
        raise FormatError(f"{where}: field 'merges' holds something that is not made of two texts")
    lengths = np.empty(2 * len(ends), np.uint32)
    lengths[0::2], lengths[1::2] = spaces - begins, ends - spaces - 1
    return Chunk(np.delete(chunk.blob, spaces), lengths, chunk.numbers)


def read_flag(source: Json, name: str, where: str) -> bool:
    """An optional true or false; absent and null are false."""
    return False if source.get(name) is None else read_field(source, name, bool, where)
