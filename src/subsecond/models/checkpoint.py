"""A model on disk, GGUF file, Hugging Face folder or artifact: each part of it is read when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from subsecond.core.errors import FormatError, InputError, SubsecondError, UnsupportedError
from subsecond.formats.artifact import Artifact, ArtifactWriter, is_artifact
from subsecond.formats.artifact_manifest import SourceFile
from subsecond.formats.gguf_parts import named_parts
from subsecond.graph.graph import Graph
from subsecond.models.config import ModelConfig
from subsecond.models.config_gguf import config_from_gguf
from subsecond.models.families.registry import build_graph, find_family
from subsecond.models.readings import NO_READINGS, parse_readings
from subsecond.models.source_file import describe, size_and_times

if TYPE_CHECKING:
    # Imported where they are used: a start from an artifact needs neither the GGUF reader nor the template engine.
    from subsecond.formats.gguf import GgufFile
    from subsecond.models.chat_template import ChatTemplate
    from subsecond.models.tokenizer import Tokenizer
    from subsecond.models.weights import WeightSource

TOKENIZER_NAME = "tokenizer.json"
_log = logging.getLogger(__name__)


class Checkpoint:
    """One model on disk. `artifact` is its packed form, None when there is none that belongs to the file.

    What is slow (parsing the file, the tokenizer, hashing) happens on first use. A damaged part is a FormatError then.
    """

    def __init__(self, path: Path, content: _Content, artifact: Artifact | None) -> None:
        self.path = path
        self.artifact = artifact
        self._content = content

    @property
    def config(self) -> ModelConfig:
        """The numbers that define the model's shape."""
        return self._content.config

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every weight of the original file, (out, in) or (length,)."""
        return self._content.shapes

    @property
    def readings(self) -> Mapping[str, str]:
        """How weights are to be executed, see `models.readings`; empty where the model does not say."""
        return self._content.readings

    def graph(self, context_tokens: int | None = None) -> Graph:
        """The unfused graph of the model, for texts of at most `context_tokens` where that is less than it allows.

        A model whose rotary positions have one form for short contexts and one for long ones takes the one that fits.
        """
        config = self.config
        is_two_forms = config.rope_scaling is not None and config.rope_scaling.kind == "longrope"
        if is_two_forms and context_tokens is not None and context_tokens < config.context_length:
            config = replace(config, context_length=context_tokens)
        try:
            return build_graph(config, self.shapes)
        except SubsecondError as error:
            raise type(error)(f"{self.path}: {error}") from error

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        tokenizer = self._content.load_tokenizer()
        if tokenizer.vocab_size > self.config.vocab_size:
            raise FormatError(
                f"{self.path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding table only "
                f"{self.config.vocab_size} rows"
            )
        return tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether there is a chat template; needs no tokenizer."""
        return self._content.chat_template_source is not None

    @property
    def chat_template_source(self) -> str | None:
        """The text of the chat template; None when the file has none."""
        return self._content.chat_template_source

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """How a conversation becomes a prompt; None when the file has no template."""
        source = self._content.chat_template_source
        if source is None:
            return None
        from subsecond.models.chat_template import ChatTemplate

        return ChatTemplate(source, self.tokenizer.bos_token, self.tokenizer.eos_token)

    @cached_property
    def weights(self) -> WeightSource:
        """The original weights; UnsupportedError for an artifact folder whose model file is not there."""
        return self._content.open_weights()

    @cached_property
    def source(self) -> SourceFile:
        """The original file, by name, sha256 and size."""
        return self._content.find_source()

    @property
    def source_sha256(self) -> str:
        """sha256 of the original file, in hexadecimal."""
        return self.source.sha256

    @contextmanager
    def artifact_writer(self, folder: Path, packing: Mapping[str, object]) -> Iterator[ArtifactWriter]:
        """A writer of an artifact of this model into `folder`, to which the caller adds the packed tensors.

        `packing` describes how the tensors are packed, the version of the layout included; the readings are added to
        it. Complete at the end of the `with` block; nothing changes on disk when an exception leaves it.
        """
        if self.readings:
            packing = {**packing, "readings": dict(self.readings)}
        with ArtifactWriter(
            folder,
            model=self.config.to_json(),
            source=self.source,
            shapes=self.shapes,
            packing=packing,
            chat_template=self._content.chat_template_source,
        ) as writer:
            self.tokenizer.save(writer.new_file(TOKENIZER_NAME))
            yield writer


def open_checkpoint(path: str | Path, *, can_use_artifact: bool = True) -> Checkpoint:
    """Open a GGUF file, a Hugging Face folder (config.json and safetensors) or an artifact folder.

    The artifact beside a model is used in place of it when it was made from these very files and all of it is there;
    otherwise a warning says why not. Without `can_use_artifact` it is not looked at.

    Raises:
        InputError: nothing is there, or the folder holds no model.
        FormatError, UnsupportedError: the model is damaged, or needs what is not supported.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, can_use_artifact)
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the path of a GGUF file or of a folder that holds a model")
    if path.suffix == ".safetensors":
        raise InputError(f"{path} is only a part of a model; give the folder that holds it: {path.parent}")
    paths = named_parts(path)
    content = _artifact_beside(paths, lambda: _GgufContent(path).open_weights()) if can_use_artifact else None
    return Checkpoint(path, content or _GgufContent(path), content.artifact if content else None)


def _open_folder(path: Path, can_use_artifact: bool) -> Checkpoint:
    # Imported here: a start from a GGUF file or an artifact needs none of it.
    from subsecond.models.hf_folder import HfFolder, is_hf_folder, source_paths

    paths = source_paths(path) if is_hf_folder(path) else ()
    if paths:
        content = _artifact_beside(paths, lambda: HfFolder(path).open_weights()) if can_use_artifact else None
        return Checkpoint(path, content or HfFolder(path), content.artifact if content else None)
    if is_artifact(path):
        artifact = Artifact.open(path)
        return Checkpoint(path, _ArtifactContent(artifact), artifact)
    if is_hf_folder(path):
        return Checkpoint(path, HfFolder(path), None)  # says what of its weights is missing
    raise InputError(
        f"{path} is a folder without config.json and without subsecond/manifest.json; "
        "give a GGUF file, a Hugging Face folder or an artifact folder"
    )


class _Content(Protocol):
    """What the kinds of checkpoint answer differently."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def readings(self) -> Mapping[str, str]: ...

    @property
    def chat_template_source(self) -> str | None: ...

    def load_tokenizer(self) -> Tokenizer: ...

    def open_weights(self) -> WeightSource: ...

    def find_source(self) -> SourceFile: ...


class _GgufContent:
    """Everything from a GGUF file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open_gguf(path)
        self.shapes: Mapping[str, tuple[int, ...]] = {n: tuple(t.shape) for n, t in self._file.tensors.items()}
        self.config = config_from_gguf(self._file.metadata, self.shapes)
        self.readings = NO_READINGS

    @property
    def chat_template_source(self) -> str | None:
        source = self._file.metadata.get("tokenizer.chat_template")
        if source is not None and not isinstance(source, str):
            raise FormatError(f"{self._path}: 'tokenizer.chat_template' is {type(source).__name__}; it must be text")
        return source

    def load_tokenizer(self) -> Tokenizer:
        from subsecond.models.tokenizer import Tokenizer

        return Tokenizer.from_gguf(self._file.metadata)

    def open_weights(self) -> WeightSource:
        from subsecond.models.weights import GgufWeights

        return GgufWeights(self._file)

    def find_source(self) -> SourceFile:
        return describe(self._file.paths)


class _ArtifactContent:
    """Everything from an artifact; `open_source` gives the weights it was made from, None when they are not at hand."""

    def __init__(self, artifact: Artifact, open_source: Callable[[], WeightSource] | None = None) -> None:
        self.artifact = artifact
        self._open_source = open_source
        self.shapes = artifact.manifest.shapes
        self.config = ModelConfig.from_json(artifact.manifest.model)
        self.readings = parse_readings(artifact.manifest.packing, self.shapes, f"{artifact.path}, packing")
        find_family(self.config.family)

    @property
    def chat_template_source(self) -> str | None:
        return self.artifact.manifest.chat_template

    def load_tokenizer(self) -> Tokenizer:
        from subsecond.models.tokenizer import Tokenizer

        try:
            return Tokenizer.load(self.artifact.file_path(TOKENIZER_NAME))
        except FormatError as error:
            raise FormatError(f"{error}; {self.artifact.remedy}") from error

    def open_weights(self) -> WeightSource:
        if self._open_source is None:
            raise UnsupportedError(
                f"{self.artifact.path} holds packed weights only; what was asked for needs the original weights. "
                f"Open the file it was made from, {self.artifact.manifest.source.name}, instead"
            )
        return self._open_source()

    def find_source(self) -> SourceFile:
        return self.artifact.manifest.source


def _open_gguf(path: Path) -> GgufFile:
    from subsecond.formats.gguf import GgufFile

    return GgufFile.open(path)


def _artifact_beside(paths: Sequence[Path], open_source: Callable[[], WeightSource]) -> _ArtifactContent | None:
    """The artifact in the folder of a model's files, when it was made from them and can be read."""
    first = paths[0]
    if not is_artifact(first.parent):
        return None
    try:
        artifact = Artifact.open(first.parent)
        source = artifact.manifest.source
        if source.name != first.name:
            return None  # another model of the same folder
        if not _is_source(paths, artifact):
            _log.warning("packed weights beside %s belong to another version of it and are not used", first)
            return None
        artifact.check_sizes()
        return _ArtifactContent(artifact, open_source)
    except (FormatError, UnsupportedError) as error:
        _log.warning("packed weights beside %s are not used: %s", first, error)
        return None


def _is_source(paths: Sequence[Path], artifact: Artifact) -> bool:
    """Whether the artifact was made from the files; files with another time are read in full, once."""
    if not all(path.is_file() for path in paths):
        return False
    source, (num_bytes, modified_ns) = artifact.manifest.source, size_and_times(paths)
    if num_bytes != source.num_bytes:
        return False
    if modified_ns == source.modified_ns:
        return True
    found = describe(paths)
    if found.sha256 != source.sha256:
        return False
    with suppress(OSError):  # a folder that cannot be written only costs the time again
        artifact.replace_source_time(found.modified_ns)
    return True
