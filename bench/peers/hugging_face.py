"""Writes a GGUF file as a Hugging Face folder in bfloat16, from which the converters of the peers start.

Run: python -m bench.peers.hugging_face MODEL.gguf FOLDER
The weights are dequantized by our reader. The tokenizer has the tokens and merges of the file but none of its rules for
cutting words: converters ask for one, and the peers are given token ids.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.quality.transformers_model import empty_model, weight_of
from subsecond.formats.gguf import GgufFile
from subsecond.models.checkpoint import Checkpoint, open_checkpoint


def write_weights(checkpoint: Checkpoint, folder: Path) -> None:
    """Write config.json and safetensors."""
    dequantize = checkpoint.weights.dequantize
    with torch.device("meta"):  # for the names only
        model = empty_model(checkpoint.config, is_tied="output.weight" not in checkpoint.shapes)
    weights = {
        name: weight_of(checkpoint.config, dequantize, name).to(torch.bfloat16).contiguous()
        for name, _ in model.named_parameters()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {
        "architectures": [type(model).__name__],
        "dtype": "bfloat16",
        "rope_theta": checkpoint.config.rope_theta,  # where releases of transformers before 5 look for it
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def tokenizer_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a tokenizer.json with the tokens and merges of a byte-level GGUF vocabulary."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = metadata.get("tokenizer.ggml.merges", ())
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": list(merges)},
    }


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_of(metadata)), encoding="utf-8")
    tokens, end_id = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.eos_token_id"]
    begin, end = tokens[metadata.get("tokenizer.ggml.bos_token_id", end_id)], tokens[end_id]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": end,
        "unk_token": end,  # one has to be named, and bytes leave nothing unknown
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def main() -> None:
    """Write one folder."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(open_checkpoint(source, can_use_artifact=False), folder)
    write_tokenizer(GgufFile.open(source).metadata, folder)


if __name__ == "__main__":
    main()
