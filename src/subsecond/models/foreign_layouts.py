"""How other programs lay out their stores of models on disk: Hugging Face cache, Ollama, LM Studio; only reads.

Nothing in these folders is trusted: names and JSON are checked and bounded, no path leaves its store, and of a model
file only the first bytes are read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from subsecond.core.errors import FormatError, InputError
from subsecond.formats.fields import read_field, shorten
from subsecond.formats.gguf_parts import named_parts
from subsecond.formats.json_file import read_json_object

MAX_ENTRIES = 20_000
"""Files and folders that are looked at in one store."""
MAX_FOLDER_DEPTH = 2
"""Folders below the one of a repository in which its GGUF files are looked for."""

_GGUF_HEADS = (b"GGUF\x02\x00\x00\x00", b"GGUF\x03\x00\x00\x00")
_NO_MODELS = ("mmproj", "imatrix")  # GGUF files that go along with a model
_HUB_NAME = r"([A-Za-z0-9](?:(?!--)[\w.-]){0,95})"
_HUB_FOLDER = re.compile(rf"models--(?:{_HUB_NAME}--)?{_HUB_NAME}", re.ASCII)
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors", re.ASCII)
_OLLAMA_PART = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_ADAPTER = "application/vnd.ollama.image.adapter"
_log = logging.getLogger(__name__)

Warn = Callable[..., None]
"""Is told what of a store cannot be read, as a logger's methods are."""


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A model in the store of another program.

    name          unambiguous: the store's prefix, and what its owner calls the model
    origin        whose store it is
    path          a GGUF file (the first, when there are several), or a folder of safetensors
    file_bytes    of all files of the weights
    short_names   other names that may mean it, in lower case, when they mean no other model
    how_to_delete what the user does to be rid of it
    """

    name: str
    origin: str
    path: Path
    file_bytes: int
    short_names: tuple[str, ...]
    how_to_delete: str


class FolderReader:
    """Looks into the folders of one store, up to MAX_ENTRIES entries in all; hidden and unprintable names are left out.

    Links are followed as long as they stay inside the store's root. `warn` is told what is left out otherwise.
    """

    def __init__(self, root: Path, warn: Warn) -> None:
        self.warn = warn
        self._root = root.resolve()
        self._num_left = MAX_ENTRIES

    def folders(self, folder: Path) -> list[Path]:
        """The folders in a folder, by name; links to folders are not followed."""
        return self._entries(folder, is_folder=True)

    def files(self, folder: Path) -> list[Path]:
        """The regular files in a folder and the links to such inside the store, by name."""
        return [path for path in self._entries(folder, is_folder=False) if self.is_file(path)]

    def is_file(self, path: Path) -> bool:
        """Whether the path is a regular file inside the store, links followed."""
        try:
            return path.is_file() and path.resolve().is_relative_to(self._root)
        except (OSError, RuntimeError):  # a loop of links
            return False

    def gguf_models(self, folder: Path, depth: int = 0) -> Iterator[tuple[Path, int]]:
        """Every GGUF model in and below a folder, with its bytes; of one in several files the first file."""
        for path in self.files(folder):
            if path.suffix == ".gguf" and not any(word in path.name.lower() for word in _NO_MODELS):
                parts = named_parts(path)
                if path == parts[0] and all(self.is_file(part) for part in parts) and is_gguf(path):
                    yield path, sum(part.stat().st_size for part in parts)
        if depth < MAX_FOLDER_DEPTH:
            for inner in self.folders(folder):
                yield from self.gguf_models(inner, depth + 1)

    def _entries(self, folder: Path, *, is_folder: bool) -> list[Path]:
        names = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._num_left -= 1
                    if self._num_left < 0:
                        break
                    is_shown = entry.name.isprintable() and not entry.name.startswith(".")
                    if is_shown and entry.is_dir(follow_symlinks=False) == is_folder:
                        names.append(entry.name)
        except FileNotFoundError:
            return []
        except OSError as error:
            self.warn("models in %s are not listed: %s", folder, error.strerror or error)
            return []
        if self._num_left == -1:
            self.warn("%s holds more than %d files and folders; the rest is not listed", self._root, MAX_ENTRIES)
        return [folder / name for name in sorted(names)]


def is_gguf(path: Path) -> bool:
    """Whether a file starts as a GGUF file that can be read does."""
    try:
        with path.open("rb") as file:
            return file.read(len(_GGUF_HEADS[0])) in _GGUF_HEADS
    except OSError:
        return False


def hugging_face_models(cache: Path, warn: Warn = _log.warning) -> Iterator[ForeignModel]:
    """The models in a cache of the Hugging Face hub: GGUF files, and folders with a config.json and safetensors."""
    reader = FolderReader(cache, warn)
    for folder in reader.folders(cache):
        match = _HUB_FOLDER.fullmatch(folder.name)
        if match is None:
            continue
        repository = f"{match[1]}/{match[2]}" if match[1] else match[2]
        snapshots = _snapshots(reader, folder)
        files: dict[str, tuple[Path, int]] = {}
        for snapshot in snapshots:
            for path, num_bytes in reader.gguf_models(snapshot):
                files.setdefault(path.relative_to(snapshot).as_posix(), (path, num_bytes))
        tensors = next(filter(None, (_safetensors_bytes(reader, snapshot) for snapshot in snapshots)), None)
        how_to_delete = f"hf cache rm model/{repository}"
        yield from _repository_models("hf", "hugging face", repository, files, tensors, how_to_delete)


def lm_studio_models(folder: Path, warn: Warn = _log.warning) -> Iterator[ForeignModel]:
    """The models in a folder of LM Studio: PUBLISHER/REPOSITORY/*.gguf."""
    reader = FolderReader(folder, warn)
    for publisher in reader.folders(folder):
        for repository in reader.folders(publisher):
            found = {path.relative_to(repository).as_posix(): (path, n) for path, n in reader.gguf_models(repository)}
            name = f"{publisher.name}/{repository.name}"
            how_to_delete = f"delete {name} in LM Studio, under My Models"
            yield from _repository_models("lmstudio", "lm studio", name, found, None, how_to_delete)


def ollama_models(folder: Path, warn: Warn = _log.warning) -> Iterator[ForeignModel]:
    """The models in a folder of Ollama that are one GGUF file; its templates and parameters are not used."""
    reader = FolderReader(folder, warn)
    for host in reader.folders(folder / "manifests"):
        for owner in reader.folders(host):
            for model in reader.folders(owner):
                for manifest in reader.files(model):
                    parts = (host.name, owner.name, model.name, manifest.name)
                    if all(_OLLAMA_PART.fullmatch(part) for part in parts):
                        found = _ollama_blob(reader, folder, manifest)
                        if found is not None:
                            yield _ollama_model(parts, *found)


def _snapshots(reader: FolderReader, folder: Path) -> list[Path]:
    """The revisions of a repository in the cache: that of the main branch first, then from new to old."""
    snapshots = reader.folders(folder / "snapshots")
    main = ""
    reference = folder / "refs" / "main"
    if reader.is_file(reference):
        with reference.open("rb") as file:
            main = file.read(256).decode("ascii", "replace").strip()
    return sorted(snapshots, key=lambda path: (path.name == main, path.stat().st_mtime_ns), reverse=True)


def _safetensors_bytes(reader: FolderReader, folder: Path) -> tuple[Path, int] | None:
    """The folder and the bytes of its tensors, when it is a model with all of its files."""
    config = folder / "config.json"
    if not reader.is_file(config):
        return None
    try:
        if not isinstance(read_json_object(config).get("model_type"), str):
            return None
    except (FormatError, InputError) as error:
        reader.warn("%s is not listed: %s", folder, error)
        return None
    files = {path.name: path for path in reader.files(folder) if path.suffix == ".safetensors"}
    names = ["model.safetensors"]
    shard = next((match for name in files if (match := _SHARD.fullmatch(name))), None)
    if names[0] not in files and shard is not None:
        count = min(int(shard[1]), MAX_ENTRIES)
        names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if not all(name in files for name in names):
        return None
    return folder, sum(files[name].stat().st_size for name in names)


def _repository_models(
    prefix: str,
    origin: str,
    repository: str,
    files: Mapping[str, tuple[Path, int]],
    tensors: tuple[Path, int] | None,
    how_to_delete: str,
) -> Iterator[ForeignModel]:
    """The models of a repository: the repository's name for the only one, else that and the name of the file."""
    short = (repository.lower(), repository.rsplit("/", 1)[-1].lower())
    if tensors is not None:
        yield ForeignModel(f"{prefix}:{repository}", origin, *tensors, short, how_to_delete)
    for file, (path, num_bytes) in files.items():
        is_only = len(files) == 1 and tensors is None
        name = f"{prefix}:{repository}" if is_only else f"{prefix}:{repository}/{file}"
        others = (*short, f"{prefix}:{repository}/{file}".lower(), f"{prefix}:{repository}".lower(), path.stem.lower())
        yield ForeignModel(name, origin, path, num_bytes, others, how_to_delete)


def _ollama_model(parts: tuple[str, str, str, str], path: Path, num_bytes: int) -> ForeignModel:
    host, owner, model, tag = parts
    owners = [] if owner == "library" and host == "registry.ollama.ai" else [owner]
    name = "/".join([*([] if host == "registry.ollama.ai" else [host]), *owners, model])
    lower = tuple(each.lower() for each in (f"{name}:{tag}", f"ollama:{name}", name))
    return ForeignModel(f"ollama:{name}:{tag}", "ollama", path, num_bytes, lower, f"ollama rm {name}:{tag}")


def _ollama_blob(reader: FolderReader, folder: Path, manifest: Path) -> tuple[Path, int] | None:
    """The file and bytes of the only model layer that a manifest names; None when it is not here or is no GGUF file."""
    try:
        layers = read_json_object(manifest).get("layers")
        if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
            raise FormatError(f"{manifest}: 'layers' is {shorten(layers)}; it must be a list of objects")
        kinds = [layer.get("mediaType") for layer in layers]
        if kinds.count(_OLLAMA_MODEL) != 1 or _OLLAMA_ADAPTER in kinds:
            return None
        layer = layers[kinds.index(_OLLAMA_MODEL)]
        digest = _DIGEST.fullmatch(read_field(layer, "digest", str, str(manifest)))
        if digest is None:
            raise FormatError(f"{manifest}: the digest of the model is no sha256")
        num_bytes = read_field(layer, "size", int, str(manifest))
    except (FormatError, InputError) as error:
        reader.warn("a model of Ollama is not listed: %s", error)
        return None
    path = folder / "blobs" / f"sha256-{digest[1]}"
    if not reader.is_file(path) or path.stat().st_size != num_bytes or not is_gguf(path):
        return None
    return path, num_bytes
