"""Stores of other programs, valid and mutated: a manifest of Ollama, and a snapshot in the cache of Hugging Face."""

from __future__ import annotations

import json
from random import Random

from tests.fuzz import file_bundle, hostile_values, json_trees
from tests.fuzz.binary_parts import mutate_bytes

_DIGEST = "ab" * 32
_REVISION = "cd" * 20
_REPOSITORY = "hub/models--owner--tiny"
FILES = (
    "ollama/manifests/registry.ollama.ai/library/tiny/latest",
    f"ollama/blobs/sha256-{_DIGEST}",
    f"{_REPOSITORY}/refs/main",
    f"{_REPOSITORY}/snapshots/{_REVISION}/config.json",
    f"{_REPOSITORY}/snapshots/{_REVISION}/model.safetensors",
)
_BLOB = b"GGUF\x03\x00\x00\x00" + bytes(24)
_MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {
        "mediaType": "application/vnd.docker.container.image.v1+json",
        "digest": f"sha256:{'0' * 64}",
        "size": 1,
    },
    "layers": [
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{_DIGEST}", "size": len(_BLOB)},
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'1' * 64}", "size": 7},
    ],
}


def valid_stores() -> bytes:
    """A bundle of FILES without a fault."""
    config = json.dumps({"model_type": "llama"}).encode()
    return file_bundle.pack([json.dumps(_MANIFEST).encode(), _BLOB, _REVISION.encode(), config, bytes(16)])


def mutated_stores(rng: Random) -> bytes:
    """A bundle of FILES with something wrong in one or two of them."""
    contents = file_bundle.unpack(valid_stores(), len(FILES))
    for index in {rng.choice((0, 0, 0, 1, 2, 3, 4)) for _ in range(2)}:
        content = contents[index] or b""
        if index in (0, 3):
            contents[index] = json_trees.mutate(json.loads(content), rng)
        else:
            contents[index] = rng.choice((None, mutate_bytes(content, rng), hostile_values.text(rng)))
    return file_bundle.pack(contents)
