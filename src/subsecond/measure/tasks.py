"""Questions with known answers, read from JSON lines: multiple choice, classification and free answers; asks nobody."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from subsecond.core.errors import InputError
from subsecond.measure.text_files import Line, read_lines

Kind = Literal["multiple choice", "classification", "generation"]

MAX_ITEMS = 100_000
MAX_CHOICES = 64
MAX_LABELS = 64
ARTICLES = frozenset({"a", "an", "the"})
MINUS = "\u2212"
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
FIRST_UNSPACED = "\u2e80"  # scripts from here on write no spaces between words


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    prompt   what the model reads: with `choices` a text that one of them continues, else a message to it
    choices  what may follow, each with the space before it; empty for a free answer
    answer   index of the right choice, -1 for a free answer
    expected texts of which a free answer should be, or contain, one
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    expected: tuple[str, ...]
    domain: str | None
    language: str | None


@dataclass(frozen=True, slots=True)
class Task:
    """The questions of a file, all of one kind."""

    name: str
    kind: Kind
    items: tuple[Item, ...]


def read_task(path: Path) -> Task:
    """The task of a JSON lines file, all of whose lines have one of these forms, and may have slices.

        {"question": text, "choices": [text, ...], "answer": index or text}     ("text" in place of "question")
        {"text": text, "label": text}
        {"question": text, "answer": text or [text, ...]}
        "domain": text, "language": text

    Raises:
        InputError: the file cannot be read, or a line is not of that form; it names file, line and field.
    """
    lines = list(read_lines(path))
    if len(lines) > MAX_ITEMS:
        raise InputError(f"{path} has {len(lines)} lines; allowed are {MAX_ITEMS}")
    kind = _kind_of(lines[0])
    for line in lines:
        if _kind_of(line) != kind:
            raise InputError(
                f"{line.where}: it is a line of {_kind_of(line)}, the lines before are of {kind}; put each kind into a "
                "file of its own"
            )
    if kind == "classification":
        return Task(path.stem, kind, _labelled(lines))
    read = _choice if kind == "multiple choice" else _free
    return Task(path.stem, kind, tuple(read(line) for line in lines))


def normalized(text: str) -> str:
    """A text without what does not make an answer another: case, punctuation, English articles, white space.

    Signs and points of numbers are kept, commas between thousands are not. Articles alone are an answer.
    """
    text = THOUSANDS.sub("", unicodedata.normalize("NFKC", text).casefold())
    kept = [char if _counts(text, place) else " " for place, char in enumerate(text)]
    words = "".join(kept).replace(MINUS, "-").split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def is_exact(answer: str, expected: Sequence[str]) -> bool:
    """Whether the answer is one of the expected texts once both are normalized."""
    return normalized(answer) in {normalized(each) for each in expected}


def contains_answer(answer: str, expected: Sequence[str]) -> bool:
    """Whether one of the expected texts stands in the answer, as whole words where the script has words."""
    found = normalized(answer)
    for each in map(normalized, expected):
        is_unspaced = any(char >= FIRST_UNSPACED for char in each)
        if each and (each in found if is_unspaced else f" {each} " in f" {found} "):
            return True
    return False


def _counts(text: str, place: int) -> bool:
    """Whether a character makes an answer another one."""
    char, before, after = text[place], text[max(0, place - 1) : place], text[place + 1 : place + 2]
    if char == ".":
        return before.isdigit() and after.isdigit()
    if char in ("-", MINUS):
        return after.isdigit() and not before.isalnum()
    return unicodedata.category(char)[0] not in "PZC"


def _kind_of(line: Line) -> Kind:
    if "choices" in line.fields:
        return "multiple choice"
    if "label" in line.fields:
        return "classification"
    if "answer" in line.fields and "question" in line.fields:
        return "generation"
    raise InputError(
        f"{line.where}: it has the fields {', '.join(sorted(line.fields)) or 'none'}; needed are question, choices and "
        "answer, or text and label, or question and answer"
    )


def _choice(line: Line) -> Item:
    name = "question" if "question" in line.fields else "text"
    asked, given = line.text(name), line.fields["choices"]
    if (
        not isinstance(given, list)
        or not 2 <= len(given) <= MAX_CHOICES
        or not all(isinstance(each, str) and each.strip() for each in given)
    ):
        line.refuse("choices", f"a list of 2 to {MAX_CHOICES} texts that are not empty")
    if len(set(given)) != len(given):
        line.refuse("choices", "a list of texts that differ")
    answer = line.fields.get("answer")
    if isinstance(answer, str) and answer in given:
        index = given.index(answer)
    elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(given):
        index = answer
    else:
        line.refuse("answer", f"one of the choices, or its index from 0 to {len(given) - 1}")
    prompt = f"Question: {asked.strip()}\nAnswer:" if name == "question" else asked.rstrip()
    return Item(prompt, _continuations(given), index, (), line.label("domain"), line.label("language"))


def _labelled(lines: Sequence[Line]) -> tuple[Item, ...]:
    """Texts with labels; every label of the file is a choice of every text."""
    given = [line.label("label") for line in lines]
    for line, label in zip(lines, given, strict=True):
        if label is None or not label.strip():
            line.refuse("label", "a text that is not empty")
    labels = sorted({label for label in given if label is not None})
    if not 2 <= len(labels) <= MAX_LABELS:
        lines[0].refuse("label", f"one of 2 to {MAX_LABELS} labels; the file has {len(labels)} different ones")
    options = ", ".join(labels)
    return tuple(
        Item(
            f"{line.text('text').strip()}\nQuestion: Which label fits this text, {options}?\nAnswer:",
            _continuations(labels),
            labels.index(str(label)),
            (),
            line.label("domain"),
            line.label("language"),
        )
        for line, label in zip(lines, given, strict=True)
    )


def _free(line: Line) -> Item:
    answer = line.fields["answer"]
    texts = answer if isinstance(answer, list) else [answer]
    if not 1 <= len(texts) <= MAX_CHOICES or not all(isinstance(each, str) and normalized(each) for each in texts):
        line.refuse("answer", f"a text, or a list of 1 to {MAX_CHOICES} texts, with letters or digits")
    expected = tuple(texts)
    return Item(line.text("question").strip(), (), -1, expected, line.label("domain"), line.label("language"))


def _continuations(choices: Sequence[str]) -> tuple[str, ...]:
    return tuple(f" {choice.strip()}" for choice in choices)
