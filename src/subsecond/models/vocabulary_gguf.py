"""Reads the vocabulary of GGUF metadata and checks it (byte-level BPE, SentencePiece, WordPiece); encodes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from subsecond.core.errors import FormatError, UnsupportedError
from subsecond.formats.fields import shorten
from subsecond.formats.gguf_metadata import StringArray
from subsecond.models.families.registry import FAMILIES
from subsecond.models.vocabulary import (
    END_TEXTS,
    MAX_MERGES,
    MAX_VOCAB_SIZE,
    ModelKind,
    SpecialTokens,
    TokenKind,
    Vocabulary,
    split_user_defined,
)
from subsecond.models.word_rules import adds_bos_by_default, find_word_rule, sentencepiece_rule, wordpiece_rule

PREFIX = "tokenizer.ggml."

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
MODELS = {"gpt2": ModelKind.BYTE_LEVEL, "llama": ModelKind.SENTENCEPIECE, "bert": ModelKind.WORDPIECE}


def read_gguf_vocabulary(metadata: Mapping[str, object]) -> Vocabulary:
    """Read and check it; FormatError when it is damaged, UnsupportedError for a kind or word rule not known."""
    model = metadata.get(PREFIX + "model")
    if not isinstance(model, str) or model not in MODELS:
        raise UnsupportedError(
            f"the vocabulary is of kind {shorten(model)}; supported are 'gpt2' (byte-level BPE), "
            "'llama' (SentencePiece) and 'bert' (WordPiece)"
        )
    tokens = _strings(metadata, "tokens")
    if not 1 <= len(tokens) <= MAX_VOCAB_SIZE:
        raise FormatError(f"the vocabulary has {len(tokens)} tokens; allowed are 1 to {MAX_VOCAB_SIZE}")
    readers = {
        ModelKind.BYTE_LEVEL: _byte_level,
        ModelKind.SENTENCEPIECE: _sentencepiece,
        ModelKind.WORDPIECE: _wordpiece,
    }
    return readers[MODELS[model]](metadata, tokens)


def _byte_level(metadata: Mapping[str, object], tokens: list[str]) -> Vocabulary:
    merges = _strings(metadata, "merges")
    if len(merges) > MAX_MERGES:
        raise FormatError(f"the vocabulary has {len(merges)} merges; allowed are {MAX_MERGES}")
    if "".join(merges).count(" ") != len(merges):
        raise FormatError(f"{PREFIX}merges must hold texts of two parts with one space between them")
    pre = metadata.get(PREFIX + "pre", "default")
    if not isinstance(pre, str):
        raise FormatError(f"{PREFIX}pre is {shorten(pre)}; it must be text")
    special = _special_tokens(metadata, tokens, ModelKind.BYTE_LEVEL, adds_bos=adds_bos_by_default(pre))
    return Vocabulary(ModelKind.BYTE_LEVEL, tokens, find_word_rule(pre), special, merges)


def _sentencepiece(metadata: Mapping[str, object], tokens: list[str]) -> Vocabulary:
    """SentencePiece. Scores order the merges, except in files of families where the order of ids does.

    The space in front is put before every piece of text, also after a control token and before a space, as
    SentencePiece itself and the tokenizer.json files of these models do.
    """
    if metadata.get(PREFIX + "precompiled_charsmap"):
        raise UnsupportedError("the vocabulary rewrites characters by a table of its own, which is not supported")
    architecture = metadata.get("general.architecture")
    kinds = _kinds(metadata, len(tokens))
    # runs of spaces are stored as such, while texts spell them as "▁"
    tokens = ["▁" * len(text) if text and not text.strip(" ") else text for text in tokens]
    special = _special_tokens(metadata, tokens, ModelKind.SENTENCEPIECE, adds_bos=True)
    if any(family.has_gguf_merges_by_id for family in FAMILIES if architecture in family.names):
        scores: Sequence[float] = range(0, -len(tokens), -1)
    else:
        scores = _scores(metadata, len(tokens))
    num_bytes = sum(kind == TokenKind.BYTE for kind in kinds.values())
    if num_bytes not in (0, 256):
        raise FormatError(f"the vocabulary has tokens for {num_bytes} bytes; it must have them for all 256 or none")
    prefix = _bool(metadata, "add_space_prefix", default=True)
    words = sentencepiece_rule(
        add_space_prefix=prefix, remove_extra_spaces=_bool(metadata, "remove_extra_whitespaces", default=False)
    )
    return Vocabulary(ModelKind.SENTENCEPIECE, tokens, words, special, scores=scores, strips_first_space=prefix)


def _wordpiece(metadata: Mapping[str, object], tokens: list[str]) -> Vocabulary:
    """BERT. Files mark the begin of a word with "▁" where BERT itself marks the rest of it with "##".

    Where the file does not say otherwise, text is taken to be lower-cased and its accents removed ("uncased").
    """
    lowercase = _bool(metadata, "normalizer.lowercase", default=True)
    strip_accents = _bool(metadata, "normalizer.strip_accents", default=lowercase)
    kinds = _kinds(metadata, len(tokens))
    tokens = [
        text
        if kinds.get(token_id) == TokenKind.CONTROL or not text
        else text[1:]
        if text.startswith("▁")
        else "##" + text
        for token_id, text in enumerate(tokens)
    ]
    special = _special_tokens(metadata, tokens, ModelKind.WORDPIECE, adds_bos=False)
    words = wordpiece_rule(lowercase=lowercase, strip_accents=strip_accents)
    return Vocabulary(ModelKind.WORDPIECE, tokens, words, special, merges=(), strips_first_space=True)


def _special_tokens(
    metadata: Mapping[str, object], tokens: Sequence[str], model: ModelKind, *, adds_bos: bool
) -> SpecialTokens:
    kinds = _kinds(metadata, len(tokens))
    by_kind: dict[int, dict[str, int]] = {kind: {} for kind in TokenKind}
    for each, kind in kinds.items():
        by_kind[kind][tokens[each]] = each
    control = {**by_kind[TokenKind.UNKNOWN], **by_kind[TokenKind.CONTROL]}
    user_defined = by_kind[TokenKind.USER_DEFINED]
    ids = {key: _token_id(metadata, key, len(tokens)) for key in (*_ROLE_KEYS, *_END_KEYS)}
    if model is ModelKind.BYTE_LEVEL:
        ids["unknown_token_id"] = None  # bytes without a token vanish, as in training
    if model is ModelKind.WORDPIECE:
        ids["cls_token_id"] = ids["cls_token_id"] if ids["cls_token_id"] is not None else ids["bos_token_id"]
        ids = {**ids, "bos_token_id": None}
        for key, text in (("cls_token_id", "[CLS]"), ("seperator_token_id", "[SEP]"), ("unknown_token_id", "[UNK]")):
            ids[key] = ids[key] if ids[key] is not None else control.get(text)
    if model is ModelKind.SENTENCEPIECE:  # old files name none of these
        for key, text in (("bos_token_id", "<s>"), ("eos_token_id", "</s>"), ("unknown_token_id", "<unk>")):
            ids[key] = ids[key] if ids[key] is not None else control.get(text)
    # files exist that mark their own begin or end as ordinary text; its role makes it a control token
    for token_id in ids.values():
        if token_id is not None:
            user_defined.pop(tokens[token_id], None)
            control[tokens[token_id]] = token_id
    user_defined, plain = split_user_defined(user_defined, model)
    ends = [ids[key] for key in _END_KEYS] + [control[text] for text in sorted(END_TEXTS & control.keys())]
    control.pop("", None)
    bos_id = ids["bos_token_id"]
    eos_ids = tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))
    return SpecialTokens(
        control=control,
        user_defined=user_defined,
        bos_id=bos_id,
        eos_ids=eos_ids,
        add_bos=_bool(metadata, "add_bos_token", default=adds_bos) and bos_id is not None,
        add_eos=_bool(metadata, "add_eos_token", default=False) and bool(eos_ids),
        plain=plain,
        unk_id=ids["unknown_token_id"],
        cls_id=ids["cls_token_id"],
        sep_id=ids["seperator_token_id"] if ids["seperator_token_id"] is not None else ids["separator_token_id"],
    )


_ROLE_KEYS = (
    "bos_token_id", "unknown_token_id", "cls_token_id", "seperator_token_id", "separator_token_id"
)  # fmt: skip
"""The key of the separator is misspelled in GGUF files."""


def _kinds(metadata: Mapping[str, object], vocab_size: int) -> dict[int, int]:
    """Return token id -> kind of all tokens but the normal and unused ones."""
    given = metadata.get(PREFIX + "token_type")
    if given is None:
        return {}
    if not isinstance(given, list) or len(given) != vocab_size:
        raise FormatError(f"{PREFIX}token_type must list one kind for each of the {vocab_size} tokens")
    special = (TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.USER_DEFINED, TokenKind.BYTE)
    return {token_id: kind for token_id, kind in enumerate(given) if kind in special}


def _scores(metadata: Mapping[str, object], vocab_size: int) -> list[float]:
    given = metadata.get(PREFIX + "scores")
    if not isinstance(given, list) or len(given) != vocab_size:
        raise FormatError(f"{PREFIX}scores must list one score for each of the {vocab_size} tokens")
    if not set(map(type, given)) <= {int, float} or not all(map(math.isfinite, given)):
        raise FormatError(f"{PREFIX}scores must be finite numbers")
    return given


def _token_id(metadata: Mapping[str, object], key: str, vocab_size: int) -> int | None:
    given = metadata.get(PREFIX + key)
    if given is None:
        return None
    if type(given) is not int or not 0 <= given < vocab_size:
        raise FormatError(f"{PREFIX}{key} is {shorten(given)}; it must be a token id below {vocab_size}")
    return given


def _bool(metadata: Mapping[str, object], key: str, *, default: bool) -> bool:
    given = metadata.get(PREFIX + key, default)
    if not isinstance(given, bool):
        raise FormatError(f"{PREFIX}{key} is {shorten(given)}; it must be true or false")
    return given


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    given = metadata.get(PREFIX + key)
    if isinstance(given, StringArray):
        return list(given)
    if not isinstance(given, list) or not set(map(type, given)) <= {str}:
        raise FormatError(f"{PREFIX}{key} must be a list of texts")
    return given
