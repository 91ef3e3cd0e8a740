"""The vocabulary of a GGUF file from a tokenizer: the inverse of `vocabulary_gguf`; writes no file.

GGUF knows the rules that cut words by name only, and SentencePiece vocabularies without merges, by scores: what does
not fit either is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from subsecond.core.errors import UnsupportedError
from subsecond.formats.gguf_writer import Value
from subsecond.models.token_table import MemoryTable
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.vocabulary import ModelKind, TokenKind, Vocabulary
from subsecond.models.vocabulary_gguf import MODELS, PREFIX
from subsecond.models.word_rules import find_rule_name

_SPELLINGS = {kind: name for name, kind in MODELS.items()}
_NO_SCORE = -1e6
"""Of tokens that no merge makes; far below all others, and exact in float32."""


def gguf_vocabulary(tokenizer: Tokenizer, num_tokens: int) -> dict[str, Value]:
    """The keys of a vocabulary of `num_tokens`, the rows of the embedding table; rows without a token get a name.

    UnsupportedError for a word rule that has no name, or merges that scores cannot order.
    """
    vocabulary = tokenizer.vocabulary
    tokens = list(vocabulary.tokens)
    tokens += [""] * (num_tokens - len(tokens))
    kinds = _kinds(tokenizer, tokens)
    content: dict[str, Value] = {"model": _SPELLINGS[vocabulary.model]}
    if vocabulary.model is ModelKind.BYTE_LEVEL:
        content["pre"] = find_rule_name(vocabulary.words)
        content["merges"] = [f"{left} {right}" for left, right in tokenizer.table.merges()]
    elif vocabulary.model is ModelKind.SENTENCEPIECE:
        content["pre"] = "default"
        content["scores"] = _scores(tokenizer, num_tokens)
        content |= _space_rule(vocabulary)
    else:
        content |= _bert_rule(vocabulary)
        tokens = [_bert_text(text, kind) for text, kind in zip(tokens, kinds, strict=True)]
    content["tokens"] = [text or f"[PAD{token_id}]" for token_id, text in enumerate(tokens)]
    content["token_type"] = kinds
    content |= _roles(vocabulary)
    return {PREFIX + name: value for name, value in content.items()}


def _kinds(tokenizer: Tokenizer, tokens: list[str]) -> list[int]:
    vocabulary = tokenizer.vocabulary
    special = vocabulary.special
    kinds = [int(TokenKind.NORMAL if text else TokenKind.UNUSED) for text in tokens]
    if vocabulary.model is ModelKind.SENTENCEPIECE:
        found = [tokenizer.table.find(f"<0x{byte:02X}>") for byte in range(256)]
        for token_id in found:
            if token_id is not None:
                kinds[token_id] = int(TokenKind.BYTE)
    for token_id in (*special.user_defined.values(), *special.plain.values()):
        kinds[token_id] = int(TokenKind.USER_DEFINED)
    for token_id in special.control.values():
        kinds[token_id] = int(TokenKind.CONTROL)
    if special.unk_id is not None and vocabulary.model is ModelKind.SENTENCEPIECE:
        kinds[special.unk_id] = int(TokenKind.UNKNOWN)
    return kinds


def _roles(vocabulary: Vocabulary) -> dict[str, Value]:
    special = vocabulary.special
    ends = (*special.eos_ids, None, None, None)
    ids = {
        "bos_token_id": special.cls_id if vocabulary.model is ModelKind.WORDPIECE else special.bos_id,
        "eos_token_id": ends[0],
        "eot_token_id": ends[1],
        "eom_token_id": ends[2],
        "unknown_token_id": special.unk_id,
        "cls_token_id": special.cls_id,
        "seperator_token_id": special.sep_id,  # the key is misspelled in GGUF files
    }
    roles: dict[str, Value] = {name: each for name, each in ids.items() if each is not None}
    return {**roles, "add_bos_token": special.add_bos, "add_eos_token": special.add_eos}


def _scores(tokenizer: Tokenizer, num_tokens: int) -> list[float]:
    """Minus the rank of the merge that makes a token; checked to give back the merges."""
    vocabulary, merges = tokenizer.vocabulary, list(tokenizer.table.merges())
    ids, scores = tokenizer.table.entries(), [_NO_SCORE] * num_tokens
    for rank, (left, right) in enumerate(merges):
        merged = ids[left + right]
        if scores[merged] == _NO_SCORE:
            scores[merged] = float(-rank)
    implied = MemoryTable(
        Vocabulary(vocabulary.model, vocabulary.tokens, vocabulary.words, vocabulary.special, scores=scores)
    )
    made = [left + right for left, right in merges]
    if sorted(implied.merges()) != sorted(merges) or made != [left + right for left, right in implied.merges()]:
        raise UnsupportedError(
            "the vocabulary merges its tokens in an order that scores, which GGUF has for vocabularies in the style of "
            "SentencePiece, cannot say"
        )
    return scores


def _space_rule(vocabulary: Vocabulary) -> dict[str, Value]:
    steps = _steps(vocabulary.words.normalizer, "normalizers") + _steps(vocabulary.words.pre_tokenizer, "pretokenizers")
    adds_prefix = any(_adds_prefix(step) for step in steps)
    strips = any(step.get("type") == "Strip" for step in steps)
    return {"add_space_prefix": adds_prefix, "remove_extra_whitespaces": strips}


def _adds_prefix(step: Mapping[str, object]) -> bool:
    if step.get("type") == "Prepend":
        return True
    return step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"


def _bert_rule(vocabulary: Vocabulary) -> dict[str, Value]:
    steps = _steps(vocabulary.words.normalizer, "normalizers")
    bert = next((step for step in steps if step.get("type") == "BertNormalizer"), None)
    if bert is None:
        raise UnsupportedError("the vocabulary cuts words by another rule than BERT's, which GGUF has no name for")
    lowercase = bool(bert.get("lowercase", True))
    accents = bert.get("strip_accents")
    return {
        "normalizer.lowercase": lowercase,
        "normalizer.strip_accents": lowercase if accents is None else bool(accents),
    }


def _bert_text(text: str, kind: int) -> str:
    if kind in (TokenKind.CONTROL, TokenKind.UNUSED):
        return text
    return text[2:] if text.startswith("##") else "▁" + text


def _steps(rule: Mapping[str, object] | None, name: str) -> list[Mapping[str, object]]:
    if rule is None:
        return []
    nested = rule.get(name) if rule.get("type") == "Sequence" else [rule]
    return [step for step in nested if isinstance(step, Mapping)] if isinstance(nested, list) else []
