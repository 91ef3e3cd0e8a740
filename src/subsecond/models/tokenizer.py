"""Text to token ids and back, for byte-level BPE, SentencePiece and WordPiece; streams are the detokenizer's business.

Special tokens are kept out of what merging can yield, so no text becomes one unless the caller allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from subsecond.core.errors import FormatError, InputError
from subsecond.models.pair_merging import PairMerger
from subsecond.models.token_table import MemoryTable, TokenTable, is_utf8
from subsecond.models.tokenizer_file import load_tokenizer, save_tokenizer
from subsecond.models.tokenizer_json import read_folder_vocabulary
from subsecond.models.vocabulary import ModelKind, SpecialTokens, Vocabulary
from subsecond.models.vocabulary_gguf import read_gguf_vocabulary
from subsecond.models.word_cutting import WordCutter
from subsecond.models.wordpiece import WordPieceEncoder

MAX_SPECIAL_CHARS = 512

_UNSPACED = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")
"""Words that BERT's own decoder writes without a space in front."""


class Tokenizer:
    """A tokenizer. Safe to use from several threads; what it builds later than at construction is guarded."""

    def __init__(self, vocabulary: Vocabulary, table: TokenTable | None = None) -> None:
        """Build from a checked vocabulary, or from a saved one with its lookup `table`.

        Raises:
            FormatError: printable ASCII cannot be encoded, or a step of the word rule is damaged. Merges that do not
                fit the tokens are found when `encode` or `save` first needs them.
            UnsupportedError: the word rule has a step that is not known.
        """
        special = vocabulary.special
        self._vocabulary = vocabulary
        self._table = MemoryTable(vocabulary) if table is None else table
        self._control_ids = frozenset(special.control.values())
        self._control_tokens = MappingProxyType({**special.control, **special.user_defined})
        self._held_out_ids = frozenset(vocabulary.held_out.values())
        self._all_texts = _SpecialTexts({**self._control_tokens, **special.plain}, special)
        self._plain_texts = _SpecialTexts(special.plain, special)
        self._byte_ids = _byte_ids(vocabulary, self._table)
        self._bytes_by_id = {token_id: byte for byte, token_id in enumerate(self._byte_ids or ())}
        self._encoder = self._build_encoder()

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer that GGUF metadata describes.

        FormatError when it is damaged, UnsupportedError for a kind of vocabulary or word rule that is not known.
        """
        return cls(read_gguf_vocabulary(metadata))

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a Hugging Face folder: its tokenizer.json and the small files beside it.

        Raises:
            InputError: there is no tokenizer.json, or it cannot be read.
            FormatError: a file is damaged.
            UnsupportedError: the model is Unigram, or the text passes through a step that is not known.
        """
        return cls(*read_folder_vocabulary(folder))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a file that `save` wrote; InputError if it cannot be read, FormatError if it is something else."""
        return cls(*load_tokenizer(Path(path)))

    def save(self, path: str | Path) -> None:
        """Write one file for `load`; FormatError when merges and tokens do not fit together."""
        save_tokenizer(Path(path), self._vocabulary, self._table)

    @property
    def vocabulary(self) -> Vocabulary:
        """Its entries, for writers of other formats; merges are in `table` alone."""
        return self._vocabulary

    @property
    def table(self) -> TokenTable:
        """Its lookup table, which lists the merges."""
        return self._table

    @property
    def vocab_size(self) -> int:
        """Number of token ids, unused ones included."""
        return len(self._vocabulary.tokens)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, None if the vocabulary has none."""
        return self._vocabulary.special.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer; the first is the one that the file itself names."""
        return self._vocabulary.special.eos_ids

    @property
    def add_bos(self) -> bool:
        """Whether the model expects `bos_id` before plain text; `encode` leaves that to the caller."""
        return self._vocabulary.special.add_bos

    @property
    def cls_id(self) -> int | None:
        """The token that BERT expects before a text, None if the vocabulary has none."""
        return self._vocabulary.special.cls_id

    @property
    def sep_id(self) -> int | None:
        """The token that BERT expects after a text, None if the vocabulary has none."""
        return self._vocabulary.special.sep_id

    @property
    def bos_token(self) -> str:
        """Text of `bos_id`, empty if there is none."""
        return "" if self.bos_id is None else self._vocabulary.tokens[self.bos_id]

    @property
    def eos_token(self) -> str:
        """Text of the first of `eos_ids`, empty if there is none."""
        return self._vocabulary.tokens[self.eos_ids[0]] if self.eos_ids else ""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Token id by the text that means it where special tokens are allowed (control and user-defined tokens)."""
        return self._control_tokens

    @property
    def unencodable_bytes(self) -> bytes:
        """The bytes without a token. Some byte-level vocabularies lack rare control characters; they vanish there."""
        if self._vocabulary.model is not ModelKind.BYTE_LEVEL:
            return b""
        return bytes(byte for byte in range(256) if self._table.find(_CHARACTERS[byte]) is None)

    @property
    def strips_first_space(self) -> bool:
        """Whether one space at the very beginning of a decoded text is left out, as encoding put one in there."""
        return self._vocabulary.strips_first_space

    def is_special(self, token_id: int) -> bool:
        """Whether the token steers the model and is left out of decoded text."""
        return token_id in self._control_ids

    def encode(self, text: str, *, allow_special: bool = False, is_continuation: bool = False) -> list[int]:
        """Token ids of a text. Without `allow_special` no text yields a special token, however it is spelled.

        `is_continuation` tells that the text follows other text or a special token; some vocabularies put a space only
        before what truly begins. Raises InputError for text with lone surrogates, which has no UTF-8 form.
        """
        if not is_utf8(text):
            raise InputError("the text holds half of a surrogate pair, which no encoding of text allows; remove it")
        texts = self._all_texts if allow_special else self._plain_texts
        token_ids: list[int] = []
        for is_first, piece, token_id in texts.split(text):
            if piece:
                token_ids += self._encoder.encode(piece, is_first=is_first and not is_continuation)
            if token_id is not None:
                token_ids.append(token_id)
        return token_ids

    def encode_text(self, text: str) -> list[int]:
        """One ordinary text as the model expects it alone, with the tokens that begin and end it.

        BERT vocabularies put it between `cls_id` and `sep_id`, others after `bos_id` where `add_bos` is set, and before
        their end where the file asks for that (models that embed texts do).
        """
        token_ids = self.encode(text)
        special = self._vocabulary.special
        begin = special.cls_id if self._vocabulary.model is ModelKind.WORDPIECE else special.bos_id
        if begin is not None and (special.add_bos or self._vocabulary.model is ModelKind.WORDPIECE):
            token_ids.insert(0, begin)
        if self._vocabulary.model is ModelKind.WORDPIECE:
            return token_ids if special.sep_id is None else [*token_ids, special.sep_id]
        return [*token_ids, special.eos_ids[0]] if special.add_eos else token_ids

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves control tokens out."""
        pieces = [self.token_bytes(each) for each in token_ids if not (skip_special and each in self._control_ids)]
        text = b"".join(pieces).decode("utf-8", "replace")
        return text[1:] if self.strips_first_space and text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, which may be part of a character; InputError for an unknown id.

        A space at the begin of the token is included, also where `decode` drops it because no text precedes it.
        """
        if not 0 <= token_id < self.vocab_size:
            raise InputError(f"there is no token {token_id}; the vocabulary has ids 0 to {self.vocab_size - 1}")
        text = self._table.text(token_id)
        model = self._vocabulary.model
        if model is ModelKind.WORDPIECE:
            return _wordpiece_text(text).encode("utf-8", "surrogateescape")
        if token_id in self._bytes_by_id:
            return bytes([self._bytes_by_id[token_id]])
        if token_id not in self._held_out_ids:
            if model is ModelKind.SENTENCEPIECE:
                text = text.replace("▁", " ")
            else:
                try:
                    return bytes([_BYTES[character] for character in text])
                except KeyError:
                    pass  # not spelled in the byte alphabet: the text itself is meant
        return text.encode("utf-8", "surrogateescape")

    def _build_encoder(self) -> PairMerger | WordPieceEncoder:
        vocabulary = self._vocabulary
        cutter = WordCutter(vocabulary.words)
        if vocabulary.model is ModelKind.WORDPIECE:
            return WordPieceEncoder(self._table, cutter, vocabulary.special.unk_id)
        if vocabulary.model is ModelKind.BYTE_LEVEL:
            missing = [chr(byte) for byte in range(0x20, 0x7F) if self._table.find(_CHARACTERS[byte]) is None]
            if missing:
                raise FormatError(f"the vocabulary has no byte-level token for the characters {''.join(missing)!r}")
        return PairMerger(
            self._table,
            cutter,
            native_from_chars=self.vocab_size,
            ignore_merges=vocabulary.words.ignore_merges,
            byte_ids=self._byte_ids,
            unk_id=vocabulary.special.unk_id,
        )


class _SpecialTexts:
    """Finds the texts of special tokens in a text, the longest first, in time that hardly depends on their number."""

    def __init__(self, ids: Mapping[str, int], special: SpecialTokens) -> None:
        self._ids = {text: token_id for text, token_id in ids.items() if is_utf8(text)}
        self._strips = special.strips
        self._lengths = sorted({len(text) for text in self._ids}, reverse=True)
        if self._lengths and self._lengths[0] > MAX_SPECIAL_CHARS:
            raise FormatError(
                f"a special token has {self._lengths[0]} characters; allowed are {MAX_SPECIAL_CHARS}, as each place of "
                "a text is compared with all of them"
            )
        begins = {text[0] for text in self._ids}
        self._begin = re.compile("[" + "".join(map(re.escape, sorted(begins))) + "]") if begins else None

    def split(self, text: str) -> Iterator[tuple[bool, str, int | None]]:
        """Yield (whether it begins the text, text before a special token, its id or None at the end)."""
        start, place, strips_left = 0, 0, False
        while self._begin is not None and (begin := self._begin.search(text, place)) is not None:
            place = begin.start()
            found = next((each for n in self._lengths if (each := text[place : place + n]) in self._ids), None)
            if found is None:
                place += 1
                continue
            piece = text[start:place].lstrip() if strips_left else text[start:place]
            strips_right, strips_left = self._strips.get(found, (False, False))
            yield start == 0, piece.rstrip() if strips_right else piece, self._ids[found]
            start = place = place + len(found)
        yield start == 0, text[start:].lstrip() if strips_left else text[start:], None


def _byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte in byte-level vocabularies (the table of GPT-2).

    Printable Latin-1 characters stand for themselves; the other bytes, in order, take the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


_CHARACTERS = _byte_alphabet()
_BYTES: Mapping[str, int] = {character: byte for byte, character in enumerate(_CHARACTERS)}


def _byte_ids(vocabulary: Vocabulary, table: TokenTable) -> list[int] | None:
    """The tokens of the 256 bytes in a SentencePiece vocabulary, None unless it has them all."""
    if vocabulary.model is not ModelKind.SENTENCEPIECE:
        return None
    found = [table.find(f"<0x{byte:02X}>") for byte in range(256)]
    known = [token_id for token_id in found if token_id is not None]
    return known if len(known) == 256 else None


def _wordpiece_text(text: str) -> str:
    """A token as it continues a text: words after a space, "##" parts and most punctuation marks without one."""
    if text.startswith("##"):
        return text[2:]
    return text if text.startswith(_UNSPACED) else " " + text
