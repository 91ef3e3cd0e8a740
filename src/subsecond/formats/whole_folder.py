"""Writes a folder as a whole or not at all, whatever ends the process meanwhile; what is in it is the caller's."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from subsecond.core.errors import InputError

_MAX_REPLACEMENTS = 8


@contextmanager
def write_folder(final: Path, *, can_replace: bool = False) -> Iterator[Path]:
    """A folder beside `final` to write into; it takes the name `final` at the end of the block, synced to the disk.

    When an exception leaves the block, nothing of it stays. A `final` that is there is an InputError unless it is
    empty or `can_replace`; it is then moved away in the last step.
    """
    check_target(final, can_replace=can_replace)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        yield partial
        for place in partial.rglob("*"):
            sync_folder(place) if place.is_dir() else sync_file(place)
        partial.chmod(0o755)
        sync_folder(partial)
        move_into_place(partial, final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(final: Path, *, can_replace: bool = False) -> None:
    """InputError unless a folder can be written there: there is nothing yet, an empty folder, or one to replace."""
    if final.is_dir():
        if not can_replace and any(final.iterdir()):
            raise InputError(f"the folder {final} is there already and not empty; give another name or remove it")
    elif final.exists() or final.is_symlink():
        raise InputError(f"{final} is there already and no folder; give another name or remove it")


def move_into_place(partial: Path, final: Path) -> None:
    """Rename a finished folder to `final`; one that is there is moved aside first and removed after."""
    aside = partial.with_name(partial.name + "-old")
    for _ in range(_MAX_REPLACEMENTS):
        with contextlib.suppress(FileNotFoundError):
            final.rename(aside)
        try:
            partial.rename(final)
            return
        except OSError:
            if not final.exists():
                raise
            # Another process finished the same folder in between; the later one stays.
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    raise FileExistsError(f"{final} is replaced by other processes all the time; run again when they are done")


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(place: Path) -> None:
    """Bring what is in a file to the disk."""
    with place.open("rb") as file:
        os.fsync(file.fileno())
