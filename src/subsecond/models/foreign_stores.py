"""Models that other programs keep on this machine, found by name and read where they lie; nothing there is changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from subsecond.core.errors import InputError
from subsecond.models.foreign_layouts import ForeignModel, hugging_face_models, lm_studio_models, ollama_models

PREFIXES = {"hf": "hugging face", "ollama": "ollama", "lmstudio": "lm studio"}
"""What names begin with, before a colon, and whose store that is."""

MAX_NAMED = 12
"""Names that a message lists."""

_log = logging.getLogger(__name__)


def hugging_face_folder() -> Path:
    """The cache of the Hugging Face hub, as its own client finds it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return _absolute(os.environ[variable])
    if os.environ.get("HF_HOME"):
        return _absolute(os.environ["HF_HOME"]) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (_absolute(cache) if cache else Path.home() / ".cache") / "huggingface" / "hub"


def ollama_folder() -> Path:
    """The models of Ollama, as it finds them itself."""
    given = os.environ.get("OLLAMA_MODELS")
    return _absolute(given) if given else Path.home() / ".ollama" / "models"


def lm_studio_folders() -> tuple[Path, ...]:
    """The models of LM Studio, of newer and of older versions."""
    return Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"


def list_foreign(origin: str | None = None, *, is_quiet: bool = False) -> tuple[ForeignModel, ...]:
    """Every model of another program that is complete and of a kind that can be opened, store after store.

    `origin` keeps it to the store of one program. What cannot be read is a warning, or with `is_quiet` a line of
    debugging.
    """
    warn = _log.debug if is_quiet else _log.warning
    models: dict[str, ForeignModel] = {}
    for owner, folder in _stores():
        if origin not in (None, owner):
            continue
        try:
            for model in _READERS[owner](folder, warn):
                models.setdefault(model.name, model)
        except OSError as error:  # a store that changes while it is read
            warn("models in %s are not listed: %s", folder, error.strerror or error)
    return tuple(sorted(models.values(), key=lambda model: (model.origin, model.name)))


def list_candidates(name: str) -> tuple[ForeignModel, ...]:
    """The models that a name may mean: those of the store that its prefix says, or of all.

    Without a prefix the name says nothing of other programs, so what is wrong in their stores is no news.
    """
    return list_foreign(owner_of(name), is_quiet=owner_of(name) is None)


def find_foreign(name: str, models: Sequence[ForeignModel]) -> ForeignModel | None:
    """The one of `models` that a full or a short name means, whatever its case; None when there is none.

    Raises:
        InputError: the name means several models.
    """
    wanted = name.lower()
    full = [model for model in models if model.name == name] or [
        model for model in models if model.name.lower() == wanted
    ]
    found = full or [model for model in models if wanted in model.short_names]
    if all(model.origin == "ollama" for model in found):  # without a tag Ollama takes this one
        found = [model for model in found if model.name.endswith(":latest")] or found
    if len({model.path.resolve() for model in found}) > 1:
        raise InputError(f"{name!r} means several models; give one of: {some_names([model.name for model in found])}")
    return found[0] if found else None


def owner_of(name: str) -> str | None:
    """Whose store a name says by its prefix that the model is in; None for a name without prefix."""
    prefix, colon, _ = name.partition(":")
    return PREFIXES.get(prefix) if colon else None


def owner_of_path(path: Path) -> str | None:
    """Whose store a path lies in, links followed; None for a path outside all of them."""
    place = path.resolve()
    return next((owner for owner, folder in _stores() if place.is_relative_to(folder.resolve())), None)


def missing(name: str, models: Sequence[ForeignModel]) -> InputError:
    """The error for a name with a prefix that means none of the `models` of its store."""
    places = " or ".join(str(folder) for owner, folder in _stores() if owner == owner_of(name))
    names = some_names([model.name for model in models])
    return InputError(f"there is no model {name[:100]!r} in the store {places}; there are: {names}")


def some_names(names: Sequence[str]) -> str:
    """Names for a message, MAX_NAMED at most."""
    return ", ".join([*names[:MAX_NAMED], *(["..."] if len(names) > MAX_NAMED else [])]) or "none"


_READERS = {"hugging face": hugging_face_models, "ollama": ollama_models, "lm studio": lm_studio_models}


def _stores() -> Iterator[tuple[str, Path]]:
    """Owner and folder of every store."""
    yield "hugging face", hugging_face_folder()
    yield "ollama", ollama_folder()
    for folder in lm_studio_folders():
        yield "lm studio", folder


def _absolute(folder: str) -> Path:
    return Path(os.path.expandvars(folder)).expanduser().absolute()
