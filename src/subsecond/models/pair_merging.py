"""Byte-pair encoding of words: in Python for the short texts of a first prompt, in the library for everything after.

Both give the same tokens. The library's tables take a third of a second to build for 150k tokens, and longer where the
merges follow from scores; a prompt of some hundred words is encoded in a few milliseconds without them.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence

import tokenizers
from tokenizers import models

from subsecond.core.errors import FormatError, InputError
from subsecond.models.token_table import Rank, TokenTable, check_merge, is_utf8
from subsecond.models.word_cutting import WordCutter, raise_unless_panic

_MAX_CACHED_WORDS = 10_000
_MAX_CACHED_CHARS = 32


class PairMerger:
    """Encodes text by merging pairs. Safe to use from several threads.

    `native_from_chars` is the number of characters, over all texts so far, from which the library's tables are worth
    building; that takes about as long as encoding as many characters as there are tokens. `byte_ids` are the tokens of
    the 256 bytes for characters that are no token themselves (SentencePiece), None where such characters have none;
    `unk_id` stands for them then, and without it they vanish, as in training.
    """

    def __init__(
        self,
        table: TokenTable,
        cutter: WordCutter,
        *,
        native_from_chars: int,
        ignore_merges: bool,
        byte_ids: Sequence[int] | None = None,
        unk_id: int | None = None,
    ) -> None:
        self._table = table
        self._cutter = cutter
        self._native_from_chars = native_from_chars
        self._ignore_merges = ignore_merges
        self._byte_ids = byte_ids
        self._unk_id = unk_id
        self._cache: dict[str, list[int]] = {}
        self._num_chars = 0
        self._native: tuple[tokenizers.Tokenizer, tokenizers.Tokenizer] | None = None
        self._lock = threading.Lock()

    def encode(self, text: str, *, is_first: bool) -> list[int]:
        """Token ids of a text; FormatError when the merges turn out to be damaged, InputError when it is too long."""
        if self._native is None and self._num_chars + len(text) < self._native_from_chars:
            self._num_chars += len(text)
            return [token_id for word in self._cutter.cut(text, is_first=is_first) for token_id in self._word(word)]
        return self.encode_native(text, is_first=is_first)

    def encode_native(self, text: str, *, is_first: bool) -> list[int]:
        """The same by the library."""
        with self._lock:
            if self._native is None:
                self._native = self._build_native()
        try:
            return self._native[0 if is_first else 1].encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise_unless_panic(error)
            raise InputError(f"a text of {len(text)} characters is too long to cut into words") from error

    def _word(self, word: str) -> list[int]:
        found = self._cache.get(word)
        if found is None:
            whole = self._table.find(word) if self._ignore_merges else None
            found = self._merge(self._symbols(word)) if whole is None else [whole]
            if len(word) <= _MAX_CACHED_CHARS and len(self._cache) < _MAX_CACHED_WORDS:
                self._cache[word] = found
        return found

    def _symbols(self, word: str) -> list[int]:
        """The token of each character, or of each of its bytes."""
        symbols: list[int] = []
        is_after_unknown = False
        for character in word:
            token_id = self._table.find(character)
            if token_id is not None:
                symbols.append(token_id)
            elif self._byte_ids is not None:
                symbols += [self._byte_ids[byte] for byte in character.encode()]
            elif self._unk_id is not None and not is_after_unknown:
                symbols.append(self._unk_id)  # one for a run of unknown characters
            is_after_unknown = token_id is None
        return symbols

    def _merge(self, symbols: list[int]) -> list[int]:
        """Merge neighbours, the lowest rank first and of equal ranks the leftmost, until none is left to merge."""
        count = len(symbols)
        if count < 2:
            return symbols
        following, preceding = list(range(1, count + 1)), list(range(-1, count - 1))
        versions = [0] * count  # an entry of the heap is stale when one of its two symbols has changed since
        heap: list[tuple[Rank, int, int, int, int]] = []

        def push(left: int, right: int) -> None:
            if left >= 0 and right < count:
                rank = self._table.rank(symbols[left], symbols[right])
                if rank is not None:
                    heapq.heappush(heap, (rank, left, right, versions[left], versions[right]))

        for left in range(count - 1):
            push(left, left + 1)
        while heap:
            _, left, right, left_version, right_version = heapq.heappop(heap)
            if versions[left] != left_version or versions[right] != right_version:
                continue
            symbols[left] = self._join(symbols[left], symbols[right])
            symbols[right] = -1
            versions[left] += 1
            versions[right] += 1
            following[left] = following[right]
            if following[right] < count:
                preceding[following[right]] = left
            push(preceding[left], left)
            push(left, following[left])
        return [symbol for symbol in symbols if symbol >= 0]

    def _join(self, left: int, right: int) -> int:
        text = self._table.text(left) + self._table.text(right)
        merged = self._table.find(text)
        if merged is None:
            raise FormatError(f"merges and tokens do not fit together: {text[:50]!r} is no token that text may become")
        return merged

    def _build_native(self) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
        """The library's encoder, for pieces that begin a text and for later ones."""
        entries = self._table.entries()
        merges = list(self._table.merges())
        for left, right in merges:
            check_merge(entries, left, right)
        unk_token = None
        if self._byte_ids is not None:
            entries.update((f"<0x{byte:02X}>", token_id) for byte, token_id in enumerate(self._byte_ids))
        elif self._unk_id is not None:
            unk_token = self._table.text(self._unk_id)
            entries[unk_token] = self._unk_id
        if not is_utf8("".join(entries)):  # such tokens exist to be decoded; no text becomes one
            entries = {text: token_id for text, token_id in entries.items() if is_utf8(text)}
        try:
            bpe = models.BPE(
                vocab=entries,
                merges=merges,
                ignore_merges=self._ignore_merges,
                byte_fallback=self._byte_ids is not None,
                fuse_unk=True,
                **({} if unk_token is None else {"unk_token": unk_token}),
            )
        except Exception as error:  # the library raises plain Exception
            raise FormatError(f"merges and tokens do not fit together: {str(error)[:200]}") from error
        return self._cutter.attach(bpe)
