"""Byte-level token ids equal those of transformers' own tokenizers built from the same vocabulary and merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer, CohereTokenizer, GPT2Tokenizer, GPTNeoXTokenizer, Qwen2Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

from subsecond.core.errors import InputError
from subsecond.models.tokenizer import Tokenizer
from tests.byte_vocabulary import SPECIAL, metadata, token_texts
from tests.parity.tokenizer_texts import corpus, parity_texts

MARKERS = {text: kind for text, kind in SPECIAL.items() if kind in (3, 4)}
SPECIAL_TEXTS = ["a<|start|>hi<|end|> <tool> <|start|>!", " <|end|> \n<tool>x"]


def train_merges() -> list[str]:
    """Merges of a vocabulary trained on the corpus without cutting words, so every rule's cuts make a difference."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer: Any = tokenizers.trainers.BpeTrainer(vocab_size=2500, show_progress=False)
    trained.train_from_iterator(corpus(), trainer)
    return [" ".join(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]


MERGES = train_merges()
GIVEN = metadata(merges=MERGES)
PLAIN_VOCABULARY = {text: token_id for token_id, text in enumerate(token_texts(GIVEN)) if text not in MARKERS}
PAIRS = [tuple(merge.split(" ")) for merge in MERGES]
ROLES = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token", "cls_token", "sep_token", "mask_token"))


def by_class(kind: Any) -> tokenizers.Tokenizer:
    """transformers' class for a model, given our vocabulary: it brings its own rule."""
    backend: tokenizers.Tokenizer = kind(vocab=dict(PLAIN_VOCABULARY), merges=list(PAIRS), **ROLES)._tokenizer
    return backend


def by_gguf(pre: str, *, ignore_merges: bool = False) -> tokenizers.Tokenizer:
    """What transformers builds for GGUF files with this rule."""
    tokens = token_texts(GIVEN)
    content = {"tokenizer_type": "gpt2", "pre_tokenizer_type": pre, "tokens": tokens, "merges": MERGES}
    backend, _ = convert_gguf_tokenizer("llama", content)
    backend.model.ignore_merges = ignore_merges
    return backend


def smollm() -> tokenizers.Tokenizer:
    """transformers has no class for these: digits on their own, then the words of GPT-2."""
    theirs = tokenizers.Tokenizer(models.BPE(vocab=dict(PLAIN_VOCABULARY), merges=list(PAIRS)))  # type: ignore[arg-type]
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    theirs.decoder = tokenizers.decoders.ByteLevel()
    return theirs


REFERENCES = {
    "gpt-2": lambda: by_class(GPT2Tokenizer),
    "olmo": lambda: by_class(GPTNeoXTokenizer),
    "qwen2": lambda: by_class(Qwen2Tokenizer),
    "command-r": lambda: by_class(CohereTokenizer),
    "smollm": smollm,
    "llama-bpe": lambda: by_gguf("llama-bpe", ignore_merges=True),
    "dbrx": lambda: by_gguf("dbrx"),
    "tekken": lambda: by_gguf("tekken", ignore_merges=True),
    "gpt-4o": lambda: by_gguf("gpt-4o"),
}


@pytest.mark.parametrize("rule", REFERENCES)
def test_same_ids_and_text_as_transformers(rule: str) -> None:
    ours, theirs = Tokenizer.from_gguf(metadata(pre=rule, merges=MERGES)), REFERENCES[rule]()
    texts = parity_texts(2000)
    assert len(texts) == 2000
    expected = theirs.encode_batch(texts, add_special_tokens=False)
    for text, encoding in zip(texts, expected, strict=True):
        assert ours.encode(text) == encoding.ids, repr(text)
        assert ours.decode(encoding.ids) == theirs.decode(encoding.ids), repr(text)


@pytest.mark.parametrize("rule", ["gpt-2", "tekken", "qwen2", "deepseek-llm", "deepseek-coder", "deepseek-v3"])
def test_both_ways_of_merging_agree(rule: str, tmp_path: Path) -> None:
    """Short texts are merged by the package itself, from memory or from the saved file, long ones by the library."""
    ours = Tokenizer.from_gguf(metadata(pre=rule, merges=MERGES))
    ours.save(tmp_path / "tokenizer.json")
    saved, native = Tokenizer.load(tmp_path / "tokenizer.json"), Tokenizer.load(tmp_path / "tokenizer.json")
    native.encode("x" * native.vocab_size)
    for text in parity_texts(600):
        expected = native.encode(text)
        fresh = Tokenizer.from_gguf(metadata(pre=rule, merges=MERGES)) if len(text) > 250 else saved
        assert fresh.encode(text) == expected, repr(text)


@pytest.mark.parametrize("rule", ["smollm", "llama-bpe", "qwen2"])
def test_special_tokens_where_allowed(rule: str) -> None:
    ours, theirs = Tokenizer.from_gguf(metadata(pre=rule, merges=MERGES)), REFERENCES[rule]()
    theirs.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in MARKERS])
    renamed = {theirs.token_to_id(text): ours.control_tokens[text] for text in MARKERS}
    for text in [*SPECIAL_TEXTS, " <|end|>".join(parity_texts(60))]:
        expected = [renamed.get(each, each) for each in theirs.encode(text, add_special_tokens=False).ids]
        assert ours.encode(text, allow_special=True) == expected, repr(text)


@pytest.mark.parametrize("kind", [GPT2Tokenizer, Qwen2Tokenizer, GPTNeoXTokenizer, CohereTokenizer])
def test_folders_that_transformers_saved(kind: Any, tmp_path: Path) -> None:
    roles = {**ROLES, "bos_token": "<|start|>", "eos_token": "<|end|>"}
    theirs = kind(vocab=dict(PLAIN_VOCABULARY), merges=list(PAIRS), **roles)
    theirs.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    theirs.save_pretrained(tmp_path)
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
    assert ours.vocab_size == 1 + max(theirs.get_vocab().values())
    assert ours.encode_text("hello the") == theirs.encode("hello the")
    for text in parity_texts(500):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), repr(text)
    for text in SPECIAL_TEXTS:
        assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False), repr(text)


def test_half_surrogates_are_refused_where_transformers_fails() -> None:
    for text in ("\ud800", "a\udfffb", "\udc00\ud800"):
        with pytest.raises(InputError, match="surrogate"):
            Tokenizer.from_gguf(GIVEN).encode(text)
        with pytest.raises((TypeError, UnicodeEncodeError)):
            by_class(GPT2Tokenizer).encode(text)
