"""The entries of a byte-level vocabulary (texts, merges, kinds, roles), read from GGUF metadata; encodes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import shorten

PREFIX = "tokenizer.ggml."
MAX_VOCAB_SIZE = 1 << 21

END_TEXTS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>"}
)
"""Control tokens that end an answer wherever they occur; files often name only one of theirs as the end."""

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


class TokenKind(IntEnum):
    """What a vocabulary entry is for; the value is the number stored in GGUF files."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens that ordinary text never becomes: `control` steers the model, `user_defined` is visible markup.

    Both map text to token id. `bos_id` is None when the vocabulary has none; `eos_ids` starts with the file's own end.
    """

    control: Mapping[str, int]
    user_defined: Mapping[str, int]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary: `tokens` by id in the byte alphabet, `merges` as "left right" in order of rank.

    `pre` names the rule that cuts text into words before merging.
    """

    tokens: Sequence[str]
    merges: Sequence[str]
    pre: str
    special: SpecialTokens

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Vocabulary:
        """Read and check it; FormatError when it is damaged, UnsupportedError when it is not byte-level BPE."""
        model = metadata.get(PREFIX + "model")
        if model != "gpt2":
            raise UnsupportedError(
                f"the vocabulary is of kind {shorten(model)}; supported is byte-level BPE, which files call 'gpt2'"
            )
        tokens = _strings(metadata, "tokens")
        merges = _strings(metadata, "merges")
        if not 1 <= len(tokens) <= MAX_VOCAB_SIZE:
            raise FormatError(f"the vocabulary has {len(tokens)} tokens; allowed are 1 to {MAX_VOCAB_SIZE}")
        pre = metadata.get(PREFIX + "pre", "default")
        if not isinstance(pre, str):
            raise FormatError(f"{PREFIX}pre is {shorten(pre)}; it must be text")
        return cls(tokens, merges, pre, _special_tokens(metadata, tokens, pre))


def _special_tokens(metadata: Mapping[str, object], tokens: Sequence[str], pre: str) -> SpecialTokens:
    kinds = _kinds(metadata, len(tokens))
    bos_id = _token_id(metadata, "bos_token_id", len(tokens))
    ends = [_token_id(metadata, key, len(tokens)) for key in _END_KEYS]
    control = {tokens[token_id]: token_id for token_id, kind in kinds.items() if kind != TokenKind.USER_DEFINED}
    user_defined = {tokens[token_id]: token_id for token_id, kind in kinds.items() if kind == TokenKind.USER_DEFINED}
    # files exist that mark their own begin or end as ordinary text; its role makes it a control token
    for token_id in (bos_id, *ends):
        if token_id is not None:
            user_defined.pop(tokens[token_id], None)
            control[tokens[token_id]] = token_id
    ends += [control[text] for text in sorted(END_TEXTS & control.keys())]
    add_bos = metadata.get(PREFIX + "add_bos_token", pre == "llama-bpe")
    if not isinstance(add_bos, bool):
        raise FormatError(f"{PREFIX}add_bos_token is {shorten(add_bos)}; it must be true or false")
    control.pop("", None)
    user_defined.pop("", None)
    eos_ids = tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))
    return SpecialTokens(control, user_defined, bos_id, eos_ids, add_bos and bos_id is not None)


def _kinds(metadata: Mapping[str, object], vocab_size: int) -> dict[int, int]:
    """Return token id -> kind of the special tokens alone."""
    given = metadata.get(PREFIX + "token_type")
    if given is None:
        return {}
    if not isinstance(given, list) or len(given) != vocab_size:
        raise FormatError(f"{PREFIX}token_type must list one kind for each of the {vocab_size} tokens")
    special = (TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.USER_DEFINED)
    return {token_id: kind for token_id, kind in enumerate(given) if kind in special}


def _token_id(metadata: Mapping[str, object], key: str, vocab_size: int) -> int | None:
    given = metadata.get(PREFIX + key)
    if given is None:
        return None
    if type(given) is not int or not 0 <= given < vocab_size:
        raise FormatError(f"{PREFIX}{key} is {shorten(given)}; it must be a token id below {vocab_size}")
    return given


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    given = metadata.get(PREFIX + key)
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise FormatError(f"{PREFIX}{key} must be a list of texts")
    return given
