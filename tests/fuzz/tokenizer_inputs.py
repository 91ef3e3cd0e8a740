"""Tokenizer metadata as JSON objects (key to value), so that values of any type reach the reader."""

from __future__ import annotations

import json
from random import Random

from tests import byte_vocabulary
from tests.fuzz import hostile_values, json_trees

RULES = ("gpt-2", "smollm", "qwen2", "llama-bpe", "default", "deepseek-llm", "tekken", "none")


def mutated_metadata(rng: Random) -> bytes:
    """Metadata of a vocabulary, as a JSON object, with something wrong or something odd but valid."""
    odd = [hostile_values.text(rng).decode("utf-8", "surrogateescape") for _ in range(rng.choice((0, 1, 8)))]
    merges = byte_vocabulary.MERGES
    if rng.random() < 0.4:
        merges = [_odd_merge(rng) if rng.random() < 0.2 else merge for merge in merges * rng.choice((1, 2))]
    if rng.random() < 0.3:
        merges = rng.sample(merges, len(merges))
    metadata = byte_vocabulary.metadata(pre=rng.choice(RULES), extra_tokens=odd)
    metadata["tokenizer.ggml.merges"] = merges
    if rng.random() < 0.3:
        tokens = byte_vocabulary.token_texts(metadata)
        tokens[rng.randrange(len(tokens))] = rng.choice((*tokens[:300:37], "", "<|", "\udcff"))
    if rng.random() < 0.3:
        metadata["tokenizer.ggml.token_type"] = [rng.randrange(-1, 9) for _ in metadata["tokenizer.ggml.tokens"]]  # type: ignore[attr-defined]
    for key in ("eot_token_id", "eom_token_id", "unknown_token_id", "padding_token_id", "add_bos_token"):
        if rng.random() < 0.1:
            metadata[f"tokenizer.ggml.{key}"] = rng.choice((True, False, 0, 255, 270, -1, 2**31, None, "1"))
    if rng.random() < 0.5:
        return json.dumps(metadata).encode()
    return json_trees.mutate(metadata, rng)


def _odd_merge(rng: Random) -> str:
    return rng.choice(("", " ", "a", "a b c", "zz qq", "h  e", "h\u00a0e", "he he", "\udc80 a", "a " * 50, "Ġ Ġ"))
