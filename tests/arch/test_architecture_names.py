"""A model family is data in a file of its own: no other file of the package names an architecture."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from subsecond.models.families.registry import FAMILIES
from tests.arch.source_tree import PACKAGE, python_files, relative, report

# Each family by its own name, and the catalogue, which is a list of models.
EXEMPT = (PACKAGE / "models" / "families", PACKAGE / "models" / "catalogue.py")
# Names that mean something else, by the file that may use them.
ALLOWED = {
    # kinds of vocabularies in GGUF files, which are called after the first model of the kind
    PACKAGE / "models" / "vocabulary_gguf.py": {"llama", "gpt2", "bert"},
    # rules that cut words in GGUF files, called after the first model with the rule
    PACKAGE / "models" / "word_rules.py": {"qwen2", "olmo", "smollm"},
}


def architecture_names() -> frozenset[str]:
    """Return what GGUF files and config.json call the architectures, and the beginnings before their versions."""
    names = {name for family in FAMILIES for name in (*family.names, *(each.name for each in family.hf_types))}
    return frozenset(names | {re.split(r"\d", name, maxsplit=1)[0] for name in names})


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and value of every string literal, also inside f-strings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def is_exempt(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in EXEMPT)


def faults_in(path: Path, allowed: set[str]) -> list[str]:
    forbidden = architecture_names() - allowed
    return [f"{relative(path)}:{line}: {text!r}" for line, text in texts(path) if text in forbidden]


def test_no_other_file_names_an_architecture() -> None:
    files = [path for path in python_files(PACKAGE) if not is_exempt(path)]
    faults = [fault for path in files for fault in faults_in(path, ALLOWED.get(path, set()))]
    assert not faults, report("What only some models have is a field of their family in models/families/:", faults)


@pytest.mark.parametrize("path", ALLOWED, ids=relative)
def test_every_exception_is_used(path: Path) -> None:
    unused = ALLOWED[path] - {text for _, text in texts(path)}
    assert not unused, report("An exception in ALLOWED of this file is needed:", sorted(unused))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "qwen3moe", "gemma3_text", "gemma", "phi"])
def test_the_check_knows_names_and_their_beginnings(name: str) -> None:
    assert name in architecture_names()


def test_the_check_sees_a_breach() -> None:
    family = PACKAGE / "models" / "families" / "gemma3.py"
    assert is_exempt(family)
    assert any(fault.endswith("'gemma3_text'") for fault in faults_in(family, set()))
