"""Text to token ids and back, for byte-level BPE vocabularies; streams are the detokenizer's business.

Special tokens are kept out of the BPE vocabulary altogether, so no text can become one unless the caller allows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.formats.fields import read_field, read_int, read_mapping
from subsecond.models.vocabulary import MAX_VOCAB_SIZE, SpecialTokens, Vocabulary

MAX_FILE_BYTES = 1 << 26
SECTION = "subsecond"
"""Our part of a tokenizer.json; it lies inside "model", the one place where other readers skip unknown fields."""

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


class Tokenizer:
    """A byte-level BPE tokenizer. Safe to use from several threads; nothing changes after construction."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Build from a checked vocabulary.

        Raises:
            FormatError: merges and tokens do not fit together, or printable ASCII cannot be encoded.
            UnsupportedError: no rule is known for the vocabulary's `pre`.
        """
        special = vocabulary.special
        self._vocabulary = vocabulary
        self._control = special.control
        self._control_ids = frozenset(special.control.values())
        self._control_tokens = MappingProxyType({**special.control, **special.user_defined})
        self._special_ids = frozenset(self._control_tokens.values())
        by_length = sorted(self._control_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, by_length)) + ")") if by_length else None
        self._bpe = _build(vocabulary, self._control_tokens)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer that GGUF metadata describes; errors as in `Vocabulary.from_gguf` and the constructor."""
        return cls(Vocabulary.from_gguf(metadata))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a file that `save` wrote; InputError if it cannot be read, FormatError if it is something else."""
        path = Path(path)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise FormatError(f"{path} is larger than {MAX_FILE_BYTES} bytes, more than any tokenizer needs")
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path} is not valid JSON: {str(error)[:200]}") from error
        return cls(_read_vocabulary(content, str(path)))

    def save(self, path: str | Path) -> None:
        """Write one tokenizer.json, in the format of the `tokenizers` library with a section of our own inside."""
        content = _describe(self._vocabulary, self._control_tokens)
        Path(path).write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")

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
        """The bytes without a token. Some vocabularies lack rare control characters; they vanish, as in training."""
        return bytes(byte for byte in range(256) if self._bpe.token_to_id(_CHARACTERS[byte]) is None)

    def is_special(self, token_id: int) -> bool:
        """Whether the token steers the model and is left out of decoded text."""
        return token_id in self._control_ids

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text. Without `allow_special` no text yields a special token, however it is spelled.

        Raises InputError for text with lone surrogates, which has no UTF-8 form.
        """
        if not _is_utf8(text):
            raise InputError("the text holds half of a surrogate pair, which no encoding of text allows; remove it")
        if not allow_special or self._special_pattern is None:
            return self._encode_plain(text)
        token_ids: list[int] = []
        # the pattern is one group, so split() returns the special tokens too, at the odd places
        for index, piece in enumerate(self._special_pattern.split(text)):
            if index % 2:
                token_ids.append(self._control_tokens[piece])
            elif piece:
                token_ids += self._encode_plain(piece)
        return token_ids

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves control tokens out."""
        pieces = [self.token_bytes(each) for each in token_ids if not (skip_special and each in self._control_ids)]
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, which may be part of a character; InputError for an unknown id."""
        if not 0 <= token_id < self.vocab_size:
            raise InputError(f"there is no token {token_id}; the vocabulary has ids 0 to {self.vocab_size - 1}")
        text = self._vocabulary.tokens[token_id]
        if token_id not in self._special_ids:
            try:
                return bytes([_BYTES[character] for character in text])
            except KeyError:
                pass  # not spelled in the byte alphabet: the text itself is meant
        return text.encode("utf-8", "surrogateescape")

    def _encode_plain(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids


def _byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte in byte-level vocabularies (the table of GPT-2).

    Printable Latin-1 characters stand for themselves; the other bytes, in order, take the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


_CHARACTERS = _byte_alphabet()
_BYTES: Mapping[str, int] = {character: byte for byte, character in enumerate(_CHARACTERS)}


def _word_rule(pre: str) -> tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer]:
    """Return how text is normalized and cut into words, by the name of the rule in GGUF files."""
    if pre in ("gpt-2", "default"):
        return None, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return None, pre_tokenizers.Sequence([digits, words])
    patterns = {"qwen2": _QWEN2_WORDS, "llama-bpe": _LLAMA3_WORDS}
    if pre not in patterns:
        raise UnsupportedError(
            f"the vocabulary cuts words by the rule {pre[:50]!r}; "
            f"supported are {', '.join(['default', 'gpt-2', 'smollm', *patterns])}"
        )
    cut = pre_tokenizers.Split(tokenizers.Regex(patterns[pre]), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return normalizers.NFC() if pre == "qwen2" else None, pre_tokenizers.Sequence([cut, to_bytes])


def _ignores_merges(pre: str) -> bool:
    """Whether a word that is a token itself is taken whole, even where merges would not lead to it."""
    return pre == "llama-bpe"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _build(vocabulary: Vocabulary, control_tokens: Mapping[str, int]) -> tokenizers.Tokenizer:
    """Assemble the BPE encoder without special tokens. Of equal texts the last id is the one that encoding yields."""
    normalizer, pre_tokenizer = _word_rule(vocabulary.pre)
    id_by_text = {text: token_id for token_id, text in enumerate(vocabulary.tokens)}
    for text in control_tokens:
        id_by_text.pop(text, None)
    missing = [chr(byte) for byte in range(0x20, 0x7F) if _CHARACTERS[byte] not in id_by_text]
    if missing:
        raise FormatError(f"the vocabulary has no byte-level token for the characters {''.join(missing)!r}")
    if not _is_utf8("".join(id_by_text)):  # such tokens exist to be decoded; no text becomes one
        id_by_text = {text: token_id for text, token_id in id_by_text.items() if _is_utf8(text)}
    pairs = [tuple(merge.split(" ")) for merge in vocabulary.merges]
    ignores_merges = _ignores_merges(vocabulary.pre)
    try:
        bpe = models.BPE(vocab=id_by_text, merges=pairs, ignore_merges=ignores_merges)  # type: ignore[arg-type]
    except Exception as error:  # the library raises plain Exception, also for a merge that names no token
        raise FormatError(f"merges and tokens do not fit together: {str(error)[:200]}") from error
    encoder = tokenizers.Tokenizer(bpe)
    if normalizer is not None:
        encoder.normalizer = normalizer
    encoder.pre_tokenizer = pre_tokenizer
    encoder.decoder = decoders.ByteLevel()
    return encoder


def _describe(vocabulary: Vocabulary, control_tokens: Mapping[str, int]) -> dict[str, object]:
    """The contents of tokenizer.json."""
    special = vocabulary.special
    empty = tokenizers.Tokenizer(models.BPE(ignore_merges=_ignores_merges(vocabulary.pre)))
    normalizer, empty.pre_tokenizer = _word_rule(vocabulary.pre)
    if normalizer is not None:
        empty.normalizer = normalizer
    empty.decoder = decoders.ByteLevel()
    content: dict[str, object] = json.loads(empty.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] = [
        {"id": token_id, "content": text, **flags, "special": text in special.control}
        for text, token_id in sorted(control_tokens.items(), key=lambda item: item[1])
        if _is_utf8(text)
    ]
    id_by_text = {text: token_id for token_id, text in enumerate(vocabulary.tokens) if _is_utf8(text)}
    in_vocab = set(id_by_text.values())
    # what JSON or a mapping cannot hold, tokens that are not UTF-8 and all but one of equal ones, is kept as hex
    others = {
        str(token_id): text.encode("utf-8", "surrogateescape").hex()
        for token_id, text in enumerate(vocabulary.tokens)
        if token_id not in in_vocab
    }
    section = {
        "pre": vocabulary.pre,
        "vocab_size": len(vocabulary.tokens),
        "control": list(special.control.values()),
        "user_defined": list(special.user_defined.values()),
        "bos_id": special.bos_id,
        "eos_ids": list(special.eos_ids),
        "add_bos": special.add_bos,
        "other_tokens": others,
    }
    model = content["model"]
    assert isinstance(model, dict)
    content["model"] = {**model, "vocab": id_by_text, "merges": list(vocabulary.merges), SECTION: section}
    return content


def _read_vocabulary(content: object, where: str) -> Vocabulary:
    """The inverse of `_describe`."""
    model = read_mapping(content if isinstance(content, dict) else {}, "model", where)
    section = read_mapping(model, SECTION, where)
    vocab, merges = read_mapping(model, "vocab", where), model.get("merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise FormatError(f"{where}: field 'merges' must be a list of texts")
    vocab_size = read_int(section, "vocab_size", where, 1, MAX_VOCAB_SIZE)
    others = {}
    for key, value in read_mapping(section, "other_tokens", where).items():
        if not key.isdecimal() or len(key) > 8 or not isinstance(value, str):
            raise FormatError(f"{where}: field 'other_tokens' must map token ids to hexadecimal text")
        try:
            others[int(key)] = bytes.fromhex(value).decode("utf-8", "surrogateescape")
        except ValueError:
            raise FormatError(f"{where}: token {key} is not hexadecimal text") from None
    if len(vocab) + len(others) != vocab_size:
        raise FormatError(f"{where}: {len(vocab) + len(others)} tokens are listed, but vocab_size is {vocab_size}")
    tokens: list[str | None] = [None] * vocab_size
    for text, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise FormatError(f"{where}: token {text[:50]!r} has an id that is not a number below {vocab_size}")
        tokens[token_id] = text
    for token_id, text in others.items():
        if token_id >= vocab_size:
            raise FormatError(f"{where}: token {token_id} is beyond vocab_size {vocab_size}")
        tokens[token_id] = text
    named = [text for text in tokens if text is not None]
    if len(named) != vocab_size:
        raise FormatError(f"{where}: some token ids are listed twice, others not at all")
    return Vocabulary(named, merges, read_field(section, "pre", str, where), _read_special(section, named, where))


def _read_special(section: Mapping[str, object], tokens: list[str], where: str) -> SpecialTokens:
    def ids(name: str) -> list[int]:
        given = section.get(name)
        if not isinstance(given, list) or not all(type(each) is int and 0 <= each < len(tokens) for each in given):
            raise FormatError(f"{where}: field {name!r} must be a list of token ids below {len(tokens)}")
        return given

    bos_id = None if section.get("bos_id") is None else read_int(section, "bos_id", where, 0, len(tokens) - 1)
    return SpecialTokens(
        control={tokens[token_id]: token_id for token_id in ids("control")},
        user_defined={tokens[token_id]: token_id for token_id in ids("user_defined")},
        bos_id=bos_id,
        eos_ids=tuple(ids("eos_ids")),
        add_bos=read_field(section, "add_bos", bool, where),
    )
