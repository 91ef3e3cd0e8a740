"""Texts and JSON lines that a model is evaluated on, read from files of others or from the package; scores nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from subsecond.core.errors import InputError
from subsecond.formats.fields import shorten
from subsecond.formats.json_file import refuse_duplicates

MAX_FILE_BYTES = 64 * 2**20
MAX_LINE_BYTES = 2**20
MAX_LABEL_CHARS = 200
DATA_FOLDER = Path(__file__).parent / "data"
SLICES = ("domain", "language")


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """A text with what it is a sample of; `domain` and `language` are None where nothing was said."""

    name: str
    text: str
    domain: str | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One object of a JSON lines file, and where it stands, for messages."""

    where: str
    fields: Mapping[str, object]

    def refuse(self, name: str, needed: str) -> NoReturn:
        """Raise InputError that names file, line and field, what was given and what is needed."""
        given = shorten(self.fields[name]) if name in self.fields else "missing"
        raise InputError(f"{self.where}: field {name!r} is {given}; it must be {needed}")

    def text(self, name: str) -> str:
        """A field that is text and not empty."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            self.refuse(name, "a text that is not empty")
        return value

    def label(self, name: str) -> str | None:
        """A field that is a short text, or None where it is not given."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not 0 < len(value) <= MAX_LABEL_CHARS:
            self.refuse(name, f"a text of 1 to {MAX_LABEL_CHARS} characters")
        return value


def read_text(path: Path) -> str:
    """A file as UTF-8 text.

    Raises:
        InputError: it cannot be read, is larger than `MAX_FILE_BYTES`, empty, or not UTF-8.
    """
    content = _read(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}; convert it first") from error
    if not text.strip():
        raise InputError(f"{path} is empty; give a file with text")
    return text


def read_lines(path: Path) -> Iterator[Line]:
    """The objects of a JSON lines file; empty lines are passed over.

    Raises:
        InputError: the file cannot be read, is too large or has no object, or a line is too long or no JSON object.
    """
    num_found = 0
    for number, content in enumerate(_read(path).split(b"\n"), start=1):
        where = f"{path}, line {number}"
        if len(content) > MAX_LINE_BYTES:
            raise InputError(f"{where}: it has {len(content)} bytes; allowed are {MAX_LINE_BYTES}")
        if not content.strip():
            continue
        try:
            value = json.loads(content, object_pairs_hook=refuse_duplicates)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: it is not valid JSON: {str(error)[:200]}") from error
        if not isinstance(value, dict):
            raise InputError(f"{where}: it is {shorten(value)}; each line must be a JSON object")
        num_found += 1
        yield Line(where, value)
    if not num_found:
        raise InputError(f"{path} has no line; give a file with one JSON object a line")


def read_texts(path: Path) -> list[EvaluationText]:
    """The texts of a file: one, or with the ending .jsonl one a line with `text`, `domain` and `language`.

    Raises:
        InputError: the file cannot be read or is not of that form.
    """
    if path.suffix != ".jsonl":
        return [EvaluationText(path.name, read_text(path))]
    return [
        EvaluationText(
            line.label("name") or f"{path.name}:{number}",
            line.text("text"),
            line.label("domain"),
            line.label("language"),
        )
        for number, line in enumerate(read_lines(path), start=1)
    ]


def packaged_texts() -> list[EvaluationText]:
    """The texts that come with the package; what they are and where they are from says the README beside them."""
    return [
        EvaluationText(
            line.text("file").removesuffix(".txt"),
            read_text(DATA_FOLDER / "texts" / line.text("file")),
            line.label("domain"),
            line.label("language"),
        )
        for line in read_lines(DATA_FOLDER / "texts.jsonl")
    ]


def packaged_tasks() -> list[Path]:
    """The files of tasks that come with the package."""
    return sorted((DATA_FOLDER / "tasks").glob("*.jsonl"))


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the path of a text or of JSON lines")
    try:
        with path.open("rb") as file:
            # read() allocates what it is asked for, whatever the file has
            content = file.read(min(path.stat().st_size, MAX_FILE_BYTES) + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {MAX_FILE_BYTES} bytes; give a part of it")
    return content
