"""Text of a stream of token ids, piece by piece, never half a character; whole lists are the tokenizer's business."""

from __future__ import annotations

import codecs
from typing import Protocol


class ByteTokens(Protocol):
    """What streaming needs of a tokenizer. One with `strips_first_space` true has a space dropped at the very begin."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for."""

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out of text."""


class StreamingDetokenizer:
    """Decodes one stream. All that `push` and `finish` return, joined, equals `tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: ByteTokens, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips_first_space = bool(getattr(tokenizer, "strips_first_space", False))
        self._is_at_begin = True

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; bytes of an unfinished character are held back."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        return self._strip(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """Return what was held back, as U+FFFD since its character never came; the next stream may follow."""
        text = self._strip(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        self._is_at_begin = True
        return text

    def _strip(self, text: str) -> str:
        if not text or not self._is_at_begin:
            return text
        self._is_at_begin = False
        return text[1:] if self._strips_first_space and text.startswith(" ") else text
