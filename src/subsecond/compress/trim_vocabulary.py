"""Leaves the tokens out of a vocabulary that a domain does not use; texts of any kind can still be written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from subsecond.compress.importance import Indices
from subsecond.core.errors import InputError, UnsupportedError
from subsecond.models.token_table import Rank, TokenTable
from subsecond.models.vocabulary import ModelKind, SpecialTokens, Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class TrimmedVocabulary:
    """`kept[i]` is the old id of token i of the new vocabulary; the order stays."""

    vocabulary: Vocabulary
    kept: Indices

    def renumber(self, token_ids: Indices) -> Indices:
        """New ids of tokens in the old numbering, in any shape; InputError for one that was left out."""
        places = np.searchsorted(self.kept, token_ids)
        is_kept = self.kept[np.minimum(places, len(self.kept) - 1)] == token_ids
        if not is_kept.all():
            raise InputError(f"token {int(token_ids[~is_kept][0])} was left out of the vocabulary")
        return places.astype(np.int64)


def trim_vocabulary(vocabulary: Vocabulary, table: TokenTable, used: Iterable[int]) -> TrimmedVocabulary:
    """The vocabulary with the tokens `used`, all special tokens, those of single bytes, and what merging needs.

    A token is made by merging pairs, and every token on the way to a used one stays, with all merges between tokens
    that stay, in their order. So texts that were cut into used tokens are cut as before: of the merges that apply to
    such a text at any moment, the one of lowest rank makes a token that stays. Other texts are cut into smaller
    tokens, at worst bytes. `table` is the vocabulary's own.

    Raises:
        InputError: an id of `used` is not in the vocabulary.
        UnsupportedError: words of the vocabulary are not made by merging, or characters without a token have no bytes.
    """
    tokens, num_tokens = vocabulary.tokens, len(vocabulary.tokens)
    if vocabulary.model is ModelKind.WORDPIECE:
        raise UnsupportedError("a WordPiece vocabulary cannot write all texts without all its tokens; leave it whole")
    stays = set(vocabulary.held_out.values()) | _roles(vocabulary.special) | _smallest(vocabulary, table)
    for token_id in used:
        if not 0 <= token_id < num_tokens:
            raise InputError(f"token {token_id} is used, but the vocabulary has ids 0 to {num_tokens - 1}")
        if token_id not in stays:
            stays.add(token_id)
            stays |= _parts(tokens[token_id], table)
    kept = sorted(stays)
    ids = {old: new for new, old in enumerate(kept)}
    entries = {text: token_id for text, token_id in table.entries().items() if token_id in stays}
    merges = [
        f"{left} {right}"
        for left, right in table.merges()
        if left in entries and right in entries and left + right in entries
    ]
    trimmed = replace(
        vocabulary,
        tokens=[tokens[old] for old in kept],
        special=_special(vocabulary.special, ids),
        merges=merges,
        scores=None,
    )
    return TrimmedVocabulary(trimmed, np.array(kept, np.int64))


def _smallest(vocabulary: Vocabulary, table: TokenTable) -> set[int]:
    """Tokens that together write any text: bytes, or all single characters where there are none for bytes.

    "▁" is needed with bytes too: it stands for a space, which its own bytes do not.
    """
    entries = table.entries()
    if vocabulary.model is ModelKind.SENTENCEPIECE:
        found = {entries[text] for byte in range(256) if (text := f"<0x{byte:02X}>") in entries}
        if len(found) == 256:
            return found | {entries[text] for text in ("▁",) if text in entries}
    return {token_id for text, token_id in entries.items() if len(text) == 1}


def _parts(text: str, table: TokenTable) -> set[int]:
    """The tokens that merging forms of the characters of `text`, on the way to it where it is made by merging."""
    found = [table.find(character) for character in text]
    symbols = [each for each in found if each is not None]
    parts = set(symbols)
    if len(symbols) < len(found):
        return parts  # characters without a token are bytes, which nothing is merged with
    while True:
        best: tuple[Rank, int] | None = None
        for place, (left, right) in enumerate(pairwise(symbols)):
            rank = table.rank(left, right)
            if rank is not None and (best is None or _is_before(rank, best[0])):
                best = rank, place
        if best is None:
            return parts
        place = best[1]
        merged = table.find(table.text(symbols[place]) + table.text(symbols[place + 1]))
        if merged is None:
            return parts
        symbols[place : place + 2] = [merged]
        parts.add(merged)


def _is_before(rank: Rank, other: Rank) -> bool:
    """Whether the first is merged earlier; ranks of one vocabulary are all of one kind."""
    return rank < other  # type: ignore[operator]


def _roles(special: SpecialTokens) -> set[int]:
    named = (special.bos_id, special.unk_id, special.cls_id, special.sep_id, *special.eos_ids)
    return {each for each in named if each is not None}


def _special(special: SpecialTokens, ids: Mapping[int, int]) -> SpecialTokens:
    """The special tokens by their new ids."""

    def one(token_id: int | None) -> int | None:
        return None if token_id is None else ids[token_id]

    def each(texts: Mapping[str, int]) -> dict[str, int]:
        return {text: ids[token_id] for text, token_id in texts.items()}

    return replace(
        special,
        control=each(special.control),
        user_defined=each(special.user_defined),
        plain=each(special.plain),
        bos_id=one(special.bos_id),
        eos_ids=tuple(ids[token_id] for token_id in special.eos_ids),
        unk_id=one(special.unk_id),
        cls_id=one(special.cls_id),
        sep_id=one(special.sep_id),
    )
