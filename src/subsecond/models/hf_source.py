"""What of a Hugging Face folder does not come from its weights, for a model that was made from another one on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from subsecond.core.errors import UnsupportedError
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.config import ModelConfig
from subsecond.models.config_hf import find_pooling, read_text_config
from subsecond.models.hf_config_writer import Json, Tokens, change_config, make_config
from subsecond.models.hf_folder import is_hf_folder
from subsecond.models.tokenizer_writer import tokenizer_files

SideFile = bytes | Path
VOCABULARY_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)
"""Files that hold tokens or their ids."""
_COPIED = (
    *VOCABULARY_FILES,
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "LICENSE",
)
_POOLING_MODES = {
    "mean": "pooling_mode_mean_tokens",
    "first": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}


@dataclass(frozen=True, slots=True)
class Template:
    """What a source gives: the content of the files beside the weights by name, and its config.json if it has one."""

    config: ModelConfig
    side_files: Mapping[str, SideFile]
    tokens: Tokens
    content: Mapping[str, object] | None = None

    def make_config(self, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Json:
        """The config.json of a model of this configuration; errors as of `hf_config_writer`."""
        if self.content is None:
            return make_config(config, shapes, self.tokens)
        return change_config(self.content, self.config, config, shapes)


def find_template(source: Checkpoint) -> Template:
    """The template that a model on disk is; UnsupportedError for an artifact folder, which is no model file."""
    if source.path.is_dir() and is_hf_folder(source.path):
        content, _ = read_text_config(source.path)
        paths = {name: source.path / name for name in _COPIED}
        pooling = find_pooling(source.path)
        if pooling is not None:
            paths[str(pooling.relative_to(source.path))] = pooling
        present: dict[str, SideFile] = {name: path for name, path in paths.items() if path.is_file()}
        return Template(source.config, present, Tokens(None, ()), content)
    if source.path.is_dir():
        raise UnsupportedError(f"{source.path} holds packed weights only; give the file that they were made from")
    original = open_checkpoint(source.path, can_use_artifact=False)  # an artifact's tokenizer is in another form
    tokenizer, config = original.tokenizer, source.config
    template = original.chat_template_source
    files: dict[str, SideFile] = {**tokenizer_files(tokenizer, template, config.context_length)}
    if config.pooling is not None:
        files |= _pooling_files(config)
    return Template(config, files, Tokens(tokenizer.bos_id, tokenizer.eos_ids))


def _pooling_files(config: ModelConfig) -> dict[str, bytes]:
    """How rows become one vector, as sentence-transformers has it."""
    assert config.pooling is not None
    package = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}Pooling"},
    ]
    pooling = {"word_embedding_dimension": config.width}
    pooling |= {mode: name == config.pooling for name, mode in _POOLING_MODES.items()}
    return {"modules.json": json.dumps(modules).encode(), "1_Pooling/config.json": json.dumps(pooling).encode()}
