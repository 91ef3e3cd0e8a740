"""The entries of a vocabulary (texts, merges, roles, word rule) as plain data; reads no file and encodes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType

MAX_VOCAB_SIZE = 1 << 21
MAX_MERGES = 1 << 22

END_TEXTS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>"}
)
"""Control tokens that end an answer wherever they occur; files often name only one of theirs as the end."""

_HTML_NAMES = (
    *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "h1", "h2", "h3", "h4", "h5", "h6"),
    *("blockquote", "strong", "em", "b", "i", "u", "sub", "sup", "code"),
)
_HTML_TEXTS = frozenset(f"<{slash}{name}>" for name in _HTML_NAMES for slash in ("", "/"))


class TokenKind(IntEnum):
    """What a vocabulary entry is for; the value is the number stored in GGUF files."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelKind(StrEnum):
    """How words become tokens.

    BYTE_LEVEL: pairs of bytes are merged; tokens are spelled in the byte alphabet of GPT-2.
    SENTENCEPIECE: pairs of characters are merged; "▁" stands for a space, `<0xC3>` for one byte.
    WORDPIECE: a word is cut into the longest tokens from the left; "##" marks all but the first.
    """

    BYTE_LEVEL = "byte-level"
    SENTENCEPIECE = "sentencepiece"
    WORDPIECE = "wordpiece"


@dataclass(frozen=True, slots=True)
class WordRule:
    """How a text becomes words. `normalizer` and `pre_tokenizer` are written as in a tokenizer.json, None for none.

    `ignore_merges`: a word that is a token itself is taken whole, even where merges would not lead to it.
    """

    normalizer: Mapping[str, object] | None
    pre_tokenizer: Mapping[str, object] | None
    ignore_merges: bool = False


def _no_tokens() -> Mapping[str, int]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens that merging never yields; every mapping is from text to token id.

    `control` steers the model, `user_defined` is visible markup of its own format, such as `<think>`. Neither comes
    from ordinary text. `plain` does: white space and HTML tags that the vocabulary keeps whole.
    `bos_id` is None when the vocabulary has none; `eos_ids` starts with the file's own end. `add_bos` and
    `add_eos` tell whether a text is expected between them. `strips` holds the control
    texts that swallow white space beside them, as (left, right).
    """

    control: Mapping[str, int]
    user_defined: Mapping[str, int]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool = False
    plain: Mapping[str, int] = field(default_factory=_no_tokens)
    unk_id: int | None = None
    cls_id: int | None = None
    sep_id: int | None = None
    strips: Mapping[str, tuple[bool, bool]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A whole vocabulary: `tokens` by id as `model` spells them, `merges` as "left right" in order of rank.

    SentencePiece files list no merges but a score for each token: then `merges` is None and `scores` tells which of
    two possible tokens is formed first (the higher score). `strips_first_space`: encoding put a space in front of the
    text, so decoding takes one away there.
    """

    model: ModelKind
    tokens: Sequence[str]
    words: WordRule
    special: SpecialTokens
    merges: Sequence[str] | None = None
    scores: Sequence[float] | None = None
    strips_first_space: bool = False

    @property
    def held_out(self) -> dict[str, int]:
        """The tokens that neither merging nor a whole word may yield, by text."""
        return {**self.special.control, **self.special.user_defined, **self.special.plain}


def split_user_defined(texts: Mapping[str, int], model: ModelKind) -> tuple[dict[str, int], dict[str, int]]:
    """Return the user-defined tokens as `SpecialTokens` keeps them: (`user_defined`, `plain`).

    Plain is white space, and HTML in a SentencePiece vocabulary. Runs of "▁" there are in neither, as merging makes
    them out of spaces.
    """
    user_defined: dict[str, int] = {}
    plain: dict[str, int] = {}
    for text, token_id in texts.items():
        if not text or (model is ModelKind.SENTENCEPIECE and not text.strip("▁")):
            continue
        is_plain = text.isspace() or (model is ModelKind.SENTENCEPIECE and text in _HTML_TEXTS)
        (plain if is_plain else user_defined)[text] = token_id
    return user_defined, plain
