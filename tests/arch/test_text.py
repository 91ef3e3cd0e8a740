"""Sources and documents name no developer's machine, leave no work marked as open, and avoid names that say nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.arch.source_tree import ROOT, relative, report

FOLDERS = ("src", "native", "tests", "tools", "docs", "bench", ".ci")
SUFFIXES = frozenset({".py", ".pyi", ".cpp", ".h", ".hpp", ".md", ".toml", ".txt", ".json", ".html", ".sh", ""})

# The patterns are put together from pieces, so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.])/" + r"(?:root|home/\w+|Users/\w+|work|workspace)/")
TEMPORARY_PATH = re.compile(r"(?<![\w.])/" + r"tmp/")
OPEN_WORK = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
EMPTY_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc", "manager", "base", "tools", "stuff"})


def text_files() -> Iterator[Path]:
    """Yield the repository's text files: the root's own and everything below the known folders."""
    candidates = [path for path in ROOT.iterdir() if path.is_file()]
    candidates += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(candidates):
        if path.suffix in SUFFIXES and "__pycache__" not in path.parts:
            yield path


def lines_with(pattern: re.Pattern[str], path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{relative(path)}:{number}: {line.strip()[:100]}"
        for number, line in enumerate(lines, start=1)
        if pattern.search(line)
    ]


def test_no_path_of_one_machine() -> None:
    faults = [fault for path in text_files() for fault in lines_with(MACHINE_PATH, path)]
    assert not faults, report("No file names a path of one developer's machine:", faults)


def test_no_fixed_temporary_path() -> None:
    files = [path for path in text_files() if not relative(path).startswith("tests/")]
    faults = [fault for path in files for fault in lines_with(TEMPORARY_PATH, path)]
    assert not faults, report("Temporary files come from the tempfile module, not from a fixed path:", faults)


def test_no_open_work_markers() -> None:
    faults = [fault for path in text_files() for fault in lines_with(OPEN_WORK, path)]
    assert not faults, report("Open work is filed, not left in the sources:", faults)


def test_names_say_what_is_inside() -> None:
    below = [path for folder in ("src", "native", "tests") for path in (ROOT / folder).rglob("*")]
    faults = [
        f"{relative(path)}:1: {path.stem}"
        for path in below
        if path.stem.lower() in EMPTY_NAMES or path.stem.lower().rsplit("_", 1)[-1] in EMPTY_NAMES
    ]
    assert not faults, report(f"Files and folders are named after one concept, none of {sorted(EMPTY_NAMES)}:", faults)
