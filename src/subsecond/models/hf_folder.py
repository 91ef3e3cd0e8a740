"""A Hugging Face folder as a model on disk: which files it is made of, and what is read from which of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from subsecond.core.errors import FormatError, SubsecondError
from subsecond.formats.artifact_manifest import SourceFile
from subsecond.formats.fields import read_field, shorten
from subsecond.formats.json_file import MAX_JSON_BYTES, read_json_object
from subsecond.formats.safetensors import INDEX_NAME, SINGLE_NAME, Safetensors
from subsecond.models.config_hf import CONFIG_NAME, config_from_hf, find_pooling, read_pooling, read_text_config
from subsecond.models.hf_quantized import read_scheme
from subsecond.models.hf_weights import HfWeights
from subsecond.models.readings import readings_of_config
from subsecond.models.source_file import describe

if TYPE_CHECKING:
    from subsecond.models.tokenizer import Tokenizer

# What a model's answers depend on besides its weights.
_SIDE_FILES = (
    CONFIG_NAME,
    "quantize_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
)
_log = logging.getLogger(__name__)


class HfFolder:
    """A folder with config.json and weights as safetensors. Opening it reads headers, no weights.

    Raises:
        InputError: a file cannot be read.
        FormatError: a file is damaged or missing.
        UnsupportedError: the model needs what is not supported, or its weights are pickled.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            content, family = read_text_config(folder)
            pooling = read_pooling(folder)
            scheme = read_scheme(content, folder)
            is_embedding_model = pooling is not None or not family.form.is_causal
            has_head = False if is_embedding_model else _has_head(content)
            self._weights = HfWeights(Safetensors.open_folder(folder), family, scheme, has_head)
            self.readings = readings_of_config(content, self._weights.shapes, CONFIG_NAME)
            self.config = config_from_hf(content, family, self._weights.shapes, _name_of(folder), pooling)
        except SubsecondError as error:
            if str(folder) in str(error):
                raise
            raise type(error)(f"{folder}: {error}") from error

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every weight, by the name that graphs use."""
        return self._weights.shapes

    @cached_property
    def chat_template_source(self) -> str | None:
        """The chat template, of the newest place in which the folder has one; None for none."""
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            return _read_text(path)
        for name in ("chat_template.json", "tokenizer_config.json"):
            path = self._folder / name
            found = read_json_object(path).get("chat_template") if path.is_file() else None
            if found is not None:
                return _default_template(found, path)
        return None

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer of the folder."""
        from subsecond.models.tokenizer import Tokenizer

        return Tokenizer.from_folder(self._folder)

    def open_weights(self) -> HfWeights:
        """The weights."""
        return self._weights

    def find_source(self) -> SourceFile:
        """The files of the folder as one; reads all of them."""
        return describe(source_paths(self._folder))


def is_hf_folder(folder: Path) -> bool:
    """Whether the folder holds a model's configuration."""
    return (folder / CONFIG_NAME).is_file()


def source_paths(folder: Path) -> tuple[Path, ...]:
    """The files that make up the model, those of the weights first; empty without any. Errors as of `find_pooling`."""
    weights = sorted(folder.glob("model*.safetensors"))
    index = folder / INDEX_NAME
    first = (index,) if index.is_file() else ()
    if not index.is_file():
        weights = [path for path in weights if path.name == SINGLE_NAME]
    if not weights:
        return ()
    sides = (*(folder / name for name in _SIDE_FILES), find_pooling(folder))
    return (*first, *weights, *(path for path in sides if path is not None and path.is_file()))


def _has_head(content: Mapping[str, object]) -> bool | None:
    """Whether the model has an output head besides its embedding table; None for a file that does not say."""
    if content.get("tie_word_embeddings") is None:
        return None
    return not read_field(content, "tie_word_embeddings", bool, CONFIG_NAME)


def _name_of(folder: Path) -> str:
    """What people call the model: the folder's name, in the cache of the hub that of the repository."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        text = file.read(min(path.stat().st_size, MAX_JSON_BYTES) + 1)
    if len(text) > MAX_JSON_BYTES:
        raise FormatError(f"{path} is larger than {MAX_JSON_BYTES} bytes, more than a chat template needs")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{path} is not text in UTF-8") from None


def _default_template(found: object, path: Path) -> str | None:
    """The template itself, or the one called "default" of several."""
    if isinstance(found, str):
        return found
    if not isinstance(found, Sequence) or not all(isinstance(each, Mapping) for each in found):
        raise FormatError(f"{path}: chat_template is {shorten(found)}; it must be text, or a list of named texts")
    for each in found:
        if each.get("name") == "default":
            return read_field(each, "template", str, str(path))
    _log.warning("%s has chat templates, but none of the name 'default'; none is used", path)
    return None
