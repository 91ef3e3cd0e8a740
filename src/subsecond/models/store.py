"""The models on this machine's disk, a folder for each: finds, lists and removes them, and never fetches one.

Models in the stores of other programs are found and listed too; they are never changed.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from subsecond.core.errors import InputError, IntegrityError
from subsecond.models import catalogue, foreign_stores

MODEL_FILE = "model.gguf"
ARTIFACT_FOLDER = "subsecond"
OWN_ORIGIN = "subsecond"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on disk. `file_bytes` is its weights' files, `artifact_bytes` the packed form beside it (0 for none).

    `origin` is whose store it is in: "subsecond", "hugging face", "ollama" or "lm studio".
    """

    name: str
    path: Path
    file_bytes: int
    artifact_bytes: int
    origin: str = OWN_ORIGIN


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
        InputError: the name has other characters than a name may have, or is that of another program's model.
    """
    owner = foreign_stores.owner_of(name)
    if owner is not None:
        raise InputError(
            f"{_shown(name)} names a model in the store of {owner}, which is read where it lies; subsecond fetches and "
            "deletes only models of its own"
        )
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

    A folder that holds no artifact does not hide a model of its name. Names of our own models and of the catalogue
    come before those of other programs, which are written with a prefix (hf:OWNER/NAME, ollama:NAME:TAG,
    lmstudio:PUBLISHER/NAME) or, where that is clear, without.

    Raises:
        InputError: neither, or several models have the name; the message says what to do next.
        IntegrityError: the model on disk has not the size that the catalogue says.
    """
    if model and _exists(Path(model).expanduser()) and not _is_mere_folder(model):
        return Path(model).expanduser()
    if foreign_stores.owner_of(model) is None and _NAME.fullmatch(model):
        path = model_path(model)
        if path.is_file():
            wrong = catalogue.size_difference(model, path)
            if wrong is not None:
                raise IntegrityError(f"{path} is damaged: it has {wrong}; fetch it anew with: subsecond pull {model}")
            return path
        if catalogue.find(model) is not None:
            raise InputError(f"{model} is not on disk yet; fetch it with: subsecond pull {model}")
    others = foreign_stores.list_candidates(model)
    foreign = foreign_stores.find_foreign(model, others)
    if foreign is not None:
        return foreign.path
    if foreign_stores.owner_of(model) is not None:
        raise foreign_stores.missing(model, others)
    is_path = not _NAME.fullmatch(model) or model.endswith((".gguf", ".safetensors"))
    if not model or (is_path and ("/" in model or "." in model)):
        raise InputError(f"there is no file or folder {_shown(model)}; give an existing path or a model name")
    raise unknown_model(model, [other.name for other in others])


def is_known(name: str) -> bool:
    """Whether our own store or the catalogue has a model of that name."""
    return _NAME.fullmatch(name) is not None and (model_path(name).is_file() or catalogue.find(name) is not None)


def list_models() -> tuple[StoredModel, ...]:
    """Every complete model on disk: those of our own by name, then those of other programs."""
    others = (
        StoredModel(model.name, model.path, model.file_bytes, 0, model.origin)
        for model in foreign_stores.list_foreign()
    )
    return (*own_models(), *others)


def own_models() -> tuple[StoredModel, ...]:
    """Every complete model in our own store, by name."""
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
        InputError: the store has no such model, or it is another program's.
    """
    folder = model_folder(name) if foreign_stores.owner_of(name) is None and _NAME.fullmatch(name) else None
    if folder is None or not folder.is_dir():
        others = foreign_stores.list_candidates(name)
        foreign = foreign_stores.find_foreign(name, others)
        if foreign is not None:
            raise InputError(
                f"{_shown(name)} is a model of another program ({foreign.origin}), and subsecond deletes only its own; "
                f"to delete it: {foreign.how_to_delete}"
            )
        if foreign_stores.owner_of(name) is not None:
            raise foreign_stores.missing(name, others)
        stored = ", ".join(model.name for model in own_models()) or "none"
        raise InputError(f"there is no model {model_folder(name).name} on disk; there are: {stored}")
    if folder.is_symlink():
        folder.unlink()
        return 0
    freed_bytes = _folder_bytes(folder)
    shutil.rmtree(folder)
    return freed_bytes


def is_link(name: str) -> bool:
    """Whether the named model of our own is a link to a folder elsewhere, which `remove` leaves alone."""
    return _NAME.fullmatch(name) is not None and model_folder(name).is_symlink()


def unknown_model(model: str, others: Sequence[str] = ()) -> InputError:
    """The error for a name that is neither on disk nor in the catalogue, with the names that come close.

    `others` are names of other programs' models.
    """
    known = sorted({*catalogue.names(), *(stored.name for stored in own_models()), *others})
    close = difflib.get_close_matches(model.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names: {foreign_stores.some_names(known)};"
    return InputError(
        f"there is no model {_shown(model)}; {hint} A path of a GGUF file or of a folder with config.json works too"
    )


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

    return is_known(model) and not is_artifact(Path(model)) and not (Path(model) / "config.json").is_file()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")


def _folder_bytes(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
