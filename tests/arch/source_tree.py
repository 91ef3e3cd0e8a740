"""Reads the repository's sources for the architecture tests: files, modules and their imports; judges nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "subsecond"
NATIVE = ROOT / "native"
CPP_SUFFIXES = (".cpp", ".h", ".hpp")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module: where the statement stands and the full dotted name it asks for."""

    path: Path
    line: int
    module: str

    @property
    def place(self) -> str:
        """`file:line`, relative to the repository."""
        return f"{relative(self.path)}:{self.line}"


def relative(path: Path) -> str:
    """Return a path as the repository names it."""
    return path.relative_to(ROOT).as_posix()


def python_files(*folders: Path) -> list[Path]:
    """Return the Python files below the folders, sorted; a folder that does not exist has none."""
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def cpp_files(*folders: Path) -> list[Path]:
    """Return the C++ sources and headers below the folders, sorted."""
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in CPP_SUFFIXES)


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package, for example `subsecond.graph.ops`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[Import]:
    """Yield every import of a file, also those inside functions and TYPE_CHECKING blocks.

    `from a.b import c` is reported as `a.b.c`, so that a module imported by its parent's name is seen too.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import; write the full module name"
            for alias in node.names:
                yield Import(path, node.lineno, f"{node.module}.{alias.name}")


def report(rule: str, findings: list[str]) -> str:
    """Join findings to a failure message that opens with the broken rule."""
    return "\n".join([rule, *(f"  {finding}" for finding in findings)])
