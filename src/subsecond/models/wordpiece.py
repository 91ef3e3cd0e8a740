"""WordPiece: a word becomes the longest tokens from the left, or the unknown token as a whole; cuts no words itself."""

from __future__ import annotations

import threading

import tokenizers
from tokenizers import models

from subsecond.core.errors import FormatError, InputError
from subsecond.models.token_table import TokenTable, is_utf8
from subsecond.models.word_cutting import WordCutter, raise_unless_panic

MAX_WORD_CHARS = 100
"""Longer words are unknown, as in BERT."""


class WordPieceEncoder:
    """Encodes text for BERT. Safe to use from several threads."""

    def __init__(self, table: TokenTable, cutter: WordCutter, unk_id: int | None) -> None:
        """Take a vocabulary whose tokens spell continuations with "##"; FormatError if it has no unknown token."""
        if unk_id is None:
            raise FormatError("the vocabulary has no unknown token, which WordPiece needs for words that it lacks")
        self._table = table
        self._cutter = cutter
        self._unk_id = unk_id
        self._native: tuple[tokenizers.Tokenizer, tokenizers.Tokenizer] | None = None
        self._lock = threading.Lock()

    def encode(self, text: str, *, is_first: bool) -> list[int]:
        """Token ids of a text; InputError when it is too long for the library."""
        with self._lock:
            if self._native is None:
                self._native = self._build_native()
        try:
            return self._native[0 if is_first else 1].encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise_unless_panic(error)
            raise InputError(f"a text of {len(text)} characters is too long to cut into words") from error

    def _build_native(self) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        unk_token = self._table.text(self._unk_id)
        entries = {text: each for text, each in self._table.entries().items() if is_utf8(text)}
        entries[unk_token] = self._unk_id
        model = models.WordPiece(vocab=entries, unk_token=unk_token, max_input_chars_per_word=MAX_WORD_CHARS)
        return self._cutter.attach(model)
