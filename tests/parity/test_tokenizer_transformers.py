"""Token ids equal those of transformers' own tokenizers built from the same vocabulary and merges."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import GPT2Tokenizer, Qwen2Tokenizer

from subsecond.models.tokenizer import Tokenizer
from tests.byte_vocabulary import SPECIAL, metadata, token_texts

CORPUS = """The quick brown fox doesn't jump over 12345 lazy dogs; they're 67 years old, and we'll see   about it.
def main(argc: int) -> None:
    for index in range(1000):\n\tprint(f"{index:>4} -> {index ** 2}")\r\n\r\n
Über Straße, naïve café: 3,14 € — „Zitat“. 日本語のテキスト、한국어 문장, русский текст 2024 года. 😀👍🏽 e\u0301 ﬁ
"""
TEXTS = [
    CORPUS,
    "",
    " ",
    "   leading and trailing   ",
    "\n\n \n\t\r\n x",
    "I'M he'Ll don't 'sup ''s",
    "1 12 123 1234 12345 ٣٤٥ ½ ²",
    "a\u00a0b\u2003c\u200bd",
    "<|start|>hi<|end|> <tool> <|start|>!",
    "e\u0301 \u1e9b\u0323 ﬁ Å",
    "x" * 300 + " !!??..\n!?",
    "\U0010ffff\U000f0000\x00\x7f",
]


def random_texts(count: int) -> list[str]:
    chance = random.Random(5)
    letters = CORPUS + "  \n\n\t\r0123456789'!?<|>_-\u00a0\u0301\u3000𝒳ßſK"
    return ["".join(chance.choices(letters, k=chance.randint(1, 40))) for _ in range(count)]


def train_merges() -> list[str]:
    """Merges of a vocabulary trained on the corpus without cutting words, so every rule's cuts make a difference."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [CORPUS[start : start + 24] for start in range(0, len(CORPUS), 7)]
    trainer: Any = tokenizers.trainers.BpeTrainer(vocab_size=1200, show_progress=False)
    trained.train_from_iterator(pieces, trainer)
    return [" ".join(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]


MERGES = train_merges()
MARKERS = {text: kind for text, kind in SPECIAL.items() if kind in (3, 4)}


def ours_and_vocabulary(rule: str) -> tuple[Tokenizer, dict[str, int], list[tuple[str, ...]]]:
    content = metadata(pre=rule, merges=MERGES)
    vocabulary = {text: token_id for token_id, text in enumerate(token_texts(content))}
    return Tokenizer.from_gguf(content), vocabulary, [tuple(merge.split(" ")) for merge in MERGES]


@pytest.mark.parametrize(("rule", "reference"), [("gpt-2", GPT2Tokenizer), ("qwen2", Qwen2Tokenizer)])
def test_same_ids_as_transformers(rule: str, reference: Any) -> None:
    ours, vocabulary, merges = ours_and_vocabulary(rule)
    plain = {text: token_id for text, token_id in vocabulary.items() if text not in MARKERS}
    roles = {"unk_token": None, "bos_token": None, "eos_token": None, "pad_token": None}
    theirs = reference(vocab=plain, merges=merges, **roles)
    for text in TEXTS + random_texts(400):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False), repr(text)


def test_same_ids_as_the_smollm_pipeline() -> None:
    ours, vocabulary, merges = ours_and_vocabulary("smollm")
    model: Any = models.BPE(vocab=vocabulary, merges=merges)  # type: ignore[arg-type]
    theirs = tokenizers.Tokenizer(model)
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    for text in TEXTS + random_texts(400):
        assert ours.encode(text) == theirs.encode(text).ids, repr(text)
    theirs.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in MARKERS])
    for text in [*TEXTS, " <|end|>".join(TEXTS)]:
        assert ours.encode(text, allow_special=True) == theirs.encode(text).ids, repr(text)


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_the_tokenizers_library_reads_what_is_saved(rule: str, tmp_path: Path) -> None:
    ours, _, _ = ours_and_vocabulary(rule)
    ours.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS + random_texts(100):
        ids = ours.encode(text, allow_special=True)
        assert theirs.encode(text).ids == ids, repr(text)
        assert theirs.decode(ids) == ours.decode(ids), repr(text)
