"""The models on this machine's disk, a folder for each: finds, lists and removes them, and never fetches one."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from subsecond.core.errors import InputError, IntegrityError
from subsecond.models import catalogue

MODEL_FILE = "model.gguf"
ARTIFACT_FOLDER = "subsecond"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in the store. `file_bytes` is its GGUF file, `artifact_bytes` the packed form beside it (0 for none)."""

    name: str
    path: Path
    file_bytes: int
    artifact_bytes: int


def home() -> Path:
    """Folder of everything that is kept between runs: $SUBSECOND_HOME, or `subsecond` in the user's cache folder."""
    given = os.environ.get("SUBSECOND_HOME")
    if given:
        return Path(given).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification says that a relative path is to be ignored.
    return (Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache") / "subsecond"


def model_folder(name: str) -> Path:
    """Folder of the named model, which need not exist.

    Raises:
        InputError: the name has other characters than a name may have.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{_shown(name)} is no model name; a name has lower-case letters, digits, '.', '_' and '-', at most 64"
        )
    return home() / "models" / name


def model_path(name: str) -> Path:
    """Path of the named model's GGUF file, which need not exist."""
    return model_folder(name) / MODEL_FILE


def resolve(model: str) -> Path:
    """Return the file or folder that `model` means: a path that exists, or else the name of a model on disk.

    A folder that holds no artifact does not hide a model of its name.

    Raises:
        InputError: neither; the message says what to do next.
        IntegrityError: the model on disk has not the size that the catalogue says.
    """
    if model and _exists(Path(model).expanduser()) and not _is_mere_folder(model):
        return Path(model).expanduser()
    if not _NAME.fullmatch(model) or model.endswith((".gguf", ".safetensors")):
        if not model or "/" in model or "." in model:
            raise InputError(f"there is no file or folder {_shown(model)}; give an existing path or a model name")
        raise unknown_model(model)
    path = model_path(model)
    if path.is_file():
        wrong = catalogue.size_difference(model, path)
        if wrong is not None:
            raise IntegrityError(f"{path} is damaged: it has {wrong}; fetch it anew with: subsecond pull {model}")
        return path
    if catalogue.find(model) is not None:
        raise InputError(f"{model} is not on disk yet; fetch it with: subsecond pull {model}")
    raise unknown_model(model)


def list_models() -> tuple[StoredModel, ...]:
    """Every complete model in the store, by name."""
    folder = home() / "models"
    if not folder.is_dir():
        return ()
    found = []
    for path in sorted(folder.glob(f"*/{MODEL_FILE}")):
        if path.is_file() and _NAME.fullmatch(path.parent.name):
            artifact_bytes = _folder_bytes(path.parent / ARTIFACT_FOLDER)
            found.append(StoredModel(path.parent.name, path, path.stat().st_size, artifact_bytes))
    return tuple(found)


def remove(name: str) -> int:
    """Delete the named model, what was packed from it and what an interrupted download left; returns the bytes freed.

    Raises:
        InputError: the store has no such model.
    """
    folder = model_folder(name)
    if not folder.is_dir():
        stored = ", ".join(model.name for model in list_models()) or "none"
        raise InputError(f"there is no model {name} on disk; there are: {stored}")
    if folder.is_symlink():
        folder.unlink()
        return 0
    freed_bytes = _folder_bytes(folder)
    shutil.rmtree(folder)
    return freed_bytes


def unknown_model(model: str) -> InputError:
    """The error for a name that is neither on disk nor in the catalogue, with the names that come close."""
    known = sorted({*catalogue.names(), *(stored.name for stored in list_models())})
    close = difflib.get_close_matches(model.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names: {', '.join(known)};"
    return InputError(f"there is no model {_shown(model)}; {hint} A path of a GGUF file works too")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system allows
        return False


def _is_mere_folder(model: str) -> bool:
    """Whether the working directory has a folder without an artifact that happens to be called like a model."""
    if not _NAME.fullmatch(model) or not Path(model).is_dir():
        return False
    from subsecond.formats.artifact import is_artifact  # it needs numpy, which listing models does not

    is_model = model_path(model).is_file() or catalogue.find(model) is not None
    return is_model and not is_artifact(Path(model))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")


def _folder_bytes(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
