"""A model's vocabulary in the form that the compiler takes: the bytes of each token, markup told from text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLTokenizer

from subsecond.core.errors import UnsupportedError
from subsecond.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class GrammarVocabulary:
    """The vocabulary, and how it is counted."""

    tokens: LLTokenizer
    num_tokens: int
    eos_ids: tuple[int, ...]


class _Wrapper:
    """What the compiler reads of a tokenizer. It is told not to force texts, so it never encodes any."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: Sequence[bytes], special_ids: Sequence[int], eos_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = eos_id
        self.bos_token_id = None

    def __call__(self, _: str) -> list[int]:
        return []


def build_vocabulary(tokenizer: Tokenizer) -> GrammarVocabulary:
    """Read every token of a tokenizer, which takes a few microseconds each.

    Control and user-defined tokens are no text: a grammar allows them where it names them, and nowhere else.
    """
    if not tokenizer.eos_ids:
        raise UnsupportedError("the vocabulary of this model has no token that ends an answer, so none can be held")
    tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    special_ids = sorted({*tokenizer.control_tokens.values(), *tokenizer.eos_ids})
    wrapper = _Wrapper(tokens, special_ids, tokenizer.eos_ids[0])
    built = LLTokenizer(wrapper, eos_token=list(tokenizer.eos_ids))  # type: ignore[arg-type]
    return GrammarVocabulary(built, tokenizer.vocab_size, tokenizer.eos_ids)
