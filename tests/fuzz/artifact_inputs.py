"""Artifact folders and tokenizer.json files, valid and mutated; a valid one is written by the product itself."""

from __future__ import annotations

import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from subsecond.backends import native
from subsecond.models.checkpoint import open_checkpoint
from tests.fuzz import file_bundle, gguf_inputs, hostile_values, json_trees
from tests.fuzz.binary_parts import mutate_bytes

FILES = ("subsecond/manifest.json", "subsecond/packed.bin", "subsecond/tokenizer.json")
NUM_BASES = 4


@lru_cache(maxsize=NUM_BASES)
def _base(index: int) -> tuple[bytes, bytes, bytes]:
    """Contents of FILES of an artifact without a fault."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "model.gguf"
        source.write_bytes(gguf_inputs.valid_model(index))
        os.utime(source, ns=(0, 0))  # the manifest holds the time, and inputs follow from their number alone
        native.write_artifact(open_checkpoint(source, can_use_artifact=False), folder)
        manifest, packed, tokenizer = ((folder / file).read_bytes() for file in FILES)
    return manifest, packed, tokenizer


@lru_cache(maxsize=NUM_BASES)
def _trees(index: int) -> tuple[Any, Any]:
    """Manifest and tokenizer of a base as trees."""
    manifest, _, tokenizer = _base(index)
    return json.loads(manifest), json.loads(tokenizer)


def valid_artifact(index: int) -> bytes:
    """A bundle of FILES without a fault."""
    return file_bundle.pack(_base(index))


def valid_tokenizer(index: int) -> bytes:
    """A tokenizer.json without a fault."""
    return _base(index)[2]


def mutated_artifact(rng: Random) -> bytes:
    """A bundle of FILES with something wrong in one or two of them."""
    index = rng.randrange(NUM_BASES)
    contents: list[bytes | None] = [*_base(index)]
    for which in {rng.choice((0, 0, 0, 0, 1, 2)) for _ in range(rng.choice((1, 1, 2)))}:
        if which == 0:
            contents[0] = json_trees.mutate(_trees(index)[0], rng)
        elif which == 1:
            contents[1] = _mutated_packed(_base(index)[1], rng)
        else:
            contents[2] = json_trees.mutate(_trees(index)[1], rng)
    if rng.random() < 0.03:
        contents = contents[: rng.randrange(3)]
    return file_bundle.pack(contents)


def mutated_tokenizer(rng: Random) -> bytes:
    """A tokenizer.json with something wrong."""
    return json_trees.mutate(_trees(rng.randrange(NUM_BASES))[1], rng)


def _mutated_packed(packed: bytes, rng: Random) -> bytes:
    if rng.random() < 0.3:
        return mutate_bytes(packed, rng)
    # the same size, so that it is read: scales become inf or nan, codes anything
    place, length = rng.randrange(len(packed)), rng.choice((2, 64, 4096, len(packed)))
    noise = rng.choice((rng.randbytes(length), b"\x00\x7c" * length, b"\xff" * length, hostile_values.text(rng)))
    return (packed[:place] + noise[:length] + packed[place + length :])[: len(packed)].ljust(len(packed), b"\xff")
