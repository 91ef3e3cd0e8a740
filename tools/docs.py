"""Generates the documents that state facts about the code, between `<!-- generated:NAME -->` and `<!-- end -->` lines.

Usage: python tools/docs.py [--check]
Without --check the blocks are rewritten in place; with it nothing is written and a stale block is an error.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subsecond.serve.routing import ApiRoute

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "subsecond"
NATIVE = ROOT / "native"
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "docs/repo_map.md", "docs/cli.md", "docs/models.md", "docs/serving.md")
BLOCK = re.compile(r"(?P<open><!-- generated:(?P<name>\w+) -->\n)(?P<body>.*?)(?P<close><!-- end -->)", re.DOTALL)
OPENING_COMMENT = re.compile(r"(?:#pragma once\s*)?((?://[^\n]*\n)+)")
NOTE = "<!-- written by tools/docs.py; `make format` renews it -->\n"


def first_sentence(text: str) -> str:
    """Return the first sentence of `text` on one line, without its full stop."""
    joined = " ".join(text.split())
    sentence = re.split(r"(?<=[.!?]) (?=[A-Z`])", joined, maxsplit=1)[0]
    return sentence.rstrip(".")


def summary(path: Path) -> str | None:
    """Return the first sentence of a Python file's docstring or of a C++ file's opening comment, if it has one."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        description = ast.get_docstring(ast.parse(text)) or ""
    else:
        opening = OPENING_COMMENT.match(text)
        description = opening[1].replace("//", " ") if opening else ""
    return first_sentence(description) if description else None


def summarized(paths: list[Path]) -> list[tuple[Path, str]]:
    """Return each file with its first sentence; raises SystemExit that lists the files without one."""
    summaries = [(path, summary(path)) for path in paths]
    silent = [f"{path.relative_to(ROOT)}:1" for path, text in summaries if text is None]
    if silent:
        rule = "A source file opens with a sentence (docstring or // comment) that says its job:"
        raise SystemExit("\n  ".join([rule, *silent]))
    return [(path, text) for path, text in summaries if text is not None]


def python_files() -> list[Path]:
    """Return every module of the package, packages before their modules."""
    paths = PACKAGE.rglob("*.py")
    return sorted(paths, key=lambda path: (path.parent.parts, path.name != "__init__.py", path.name))


def native_files() -> list[Path]:
    """Return the extension's headers, and its sources that have none; a folder before its sub-folders.

    A header speaks for the source of the same name.
    """
    headers = list(NATIVE.rglob("*.h"))
    sources = [path for path in NATIVE.rglob("*.cpp") if not path.with_suffix(".h").exists()]
    return sorted([*headers, *sources], key=lambda path: (path.parent.parts, path.name))


def repo_map() -> str:
    """Render one line for every source file of the package and the extension."""
    files = summarized([*python_files(), *native_files()])
    return "".join(f"- `{path.relative_to(ROOT)}`: {text}\n" for path, text in files)


def packages() -> str:
    """Render one line for every top-level package and module of the package."""
    lines = []
    for path, text in summarized(python_files()):
        relative = path.relative_to(PACKAGE)
        if len(relative.parts) == 2 and relative.name == "__init__.py":
            lines.append(f"- `src/subsecond/{relative.parent}/`: {text}\n")
        elif len(relative.parts) == 1 and not relative.name.startswith("__"):
            lines.append(f"- `src/subsecond/{relative}`: {text}\n")
    return "".join(sorted(lines))


def invocation(action: argparse.Action) -> str:
    """Return how an argument is written on the command line, for example `--seed N`."""
    if not action.option_strings:
        name = action.metavar if isinstance(action.metavar, str) else action.dest
        return f"[{name}]" if action.nargs in ("?", "*") else name
    flags = ", ".join(action.option_strings)
    if action.nargs == 0:
        return flags
    if action.choices:
        return f"{flags} {{{','.join(str(choice) for choice in action.choices)}}}"
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return f"{flags} {value}"


def arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of one command that a user may write, without its sub-commands and --help."""
    # argparse has no public list of a parser's arguments
    for action in parser._actions:
        is_structure = isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
        if not is_structure and action.help is not argparse.SUPPRESS:
            yield action


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the sub-commands of a parser by name."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def command_section(parser: argparse.ArgumentParser) -> str:
    """Render one command: its name, what it does, and a table of its arguments."""
    lines = [f"## {parser.prog}", ""]
    if parser.description:
        lines += [" ".join(parser.description.split()), ""]
    rows = []
    formatter = parser._get_formatter()
    for action in arguments(parser):
        explanation = formatter._expand_help(action) if action.help else ""
        if not explanation:
            raise SystemExit(f"{parser.prog}: {invocation(action)} has no help text")
        cells = (f"`{invocation(action)}`", " ".join(explanation.split()))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if rows:
        lines += ["| argument | meaning |", "| --- | --- |", *rows, ""]
    return "\n".join(lines) + "\n"


def cli() -> str:
    """Render every command's arguments.

    The text comes from the parser's fields, not from its --help page, whose layout differs between Python releases.
    """
    sys.path.insert(0, str(ROOT / "src"))
    if importlib.util.find_spec("subsecond.cli") is None or importlib.util.find_spec("subsecond.cli.main") is None:
        return "No command exists yet.\n"
    from subsecond.cli.main import build_parser

    parser = build_parser()
    sections = [command_section(parser)]
    sections += [command_section(command) for _, command in sorted(commands(parser).items())]
    return "\n".join(section.rstrip("\n") + "\n" for section in sections)


def families() -> str:
    """Render one row for every model family."""
    sys.path.insert(0, str(ROOT / "src"))
    from subsecond.models.families.registry import FAMILIES, family_module

    lines = ["| models | architecture in GGUF | `model_type` in config.json |", "| --- | --- | --- |"]
    for family in FAMILIES:
        about = first_sentence(family_module(family).__doc__ or "")
        hf_names = [each.name for each in family.hf_types]
        names = (", ".join(f"`{name}`" for name in each) for each in (family.names, hf_names))
        lines.append(f"| {about} | {' | '.join(names)} |")
    return "\n".join(lines) + "\n"


def tensor_types() -> str:
    """Render one row for every tensor type of GGUF files."""
    sys.path.insert(0, str(ROOT / "src"))
    from subsecond.backends.native.weight_formats import STORED_FORMATS
    from subsecond.formats.gguf_types import BLOCK_LAYOUTS, TensorType, can_dequantize

    lines = ["| type | bits a weight | native kernels | fp32 reference |", "| --- | --- | --- | --- |"]
    for tensor_type in TensorType:
        layout = BLOCK_LAYOUTS[tensor_type]
        bits = 8 * layout.num_bytes / layout.num_elements
        has = [tensor_type.name in STORED_FORMATS, can_dequantize(tensor_type)]
        if any(has):
            lines.append(f"| {tensor_type.name} | {bits:g} | {' | '.join('yes' if each else 'no' for each in has)} |")
    return "\n".join(lines) + "\n"


def api_routes() -> list[ApiRoute]:
    """Return the routes of the server."""
    sys.path.insert(0, str(ROOT / "src"))
    from subsecond.serve.app import make_app
    from subsecond.serve.registry import ModelRegistry, ModelSpec
    from subsecond.serve.settings import ServeSettings

    no_loader: Any = None
    app = make_app(ModelRegistry([ModelSpec("example", "example")], no_loader), ServeSettings())
    return sorted(app.table.routes, key=lambda route: route.path)


def routes() -> str:
    """Render one row for every route of the server."""
    lines = ["| request | what it does |", "| --- | --- |"]
    lines += [f"| `{route.method} {route.path}` | {route.summary} |" for route in api_routes()]
    return "\n".join(lines) + "\n"


def harmless_fields() -> dict[str, tuple[str, ...]]:
    """Return the fields that change no answer, by the beginning of the paths where they do not."""
    from subsecond.serve import anthropic_order, ollama_order, responses_order

    return {
        "/v1/messages": anthropic_order.HARMLESS,
        "/v1/responses": responses_order.HARMLESS,
        "/api/": tuple(f"options.{name}" for name in ollama_order.HARMLESS_OPTIONS),
    }


def bodies() -> str:
    """Render what the server says of every kind of request body, and its fields."""
    sections = []
    for route in api_routes():
        if route.request_type is None:
            continue
        about = inspect.getdoc(route.request_type) or ""
        parts = [" ".join(part.split()) for part in re.split(r"\n\n|\n(?=\S+(?: \S+)?  +)", about)]
        parts = [re.sub(r"^(harmless|refused) ", lambda word: f"{word[1].capitalize()}: ", part) for part in parts]
        kind: Any = route.request_type
        fields: tuple[str, ...] = kind.__struct_encode_fields__
        for start, names in harmless_fields().items():
            given = [name for name in names if name.partition(".")[0] in fields]
            if route.path.startswith(start) and given:
                parts.append(f"Harmless: {', '.join(given)}")
        listed = ", ".join(f"`{name}`" for name in fields)
        sections.append("\n\n".join([f"### `{route.path}`", *parts, f"Fields: {listed}."]) + "\n")
    return "\n".join(sections)


GENERATORS: dict[str, Callable[[], str]] = {
    "repo_map": repo_map,
    "packages": packages,
    "cli": cli,
    "families": families,
    "tensor_types": tensor_types,
    "routes": routes,
    "bodies": bodies,
}


def renewed(text: str, document: str) -> str:
    """Return `text` with every generated block rendered afresh; raises SystemExit on an unknown block name."""

    def render(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in GENERATORS:
            raise SystemExit(f"{document}: unknown block {name!r}; tools/docs.py knows {', '.join(GENERATORS)}")
        return f"{match['open']}{NOTE}{GENERATORS[name]()}{match['close']}"

    return BLOCK.sub(render, text)


def main() -> None:
    """Rewrite or check every document; exit with status 1 when a check finds a stale one."""
    parser = argparse.ArgumentParser(description="Generate or check the documents that state facts about the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a block is stale")
    is_check = parser.parse_args().check
    stale = []
    for document in DOCUMENTS:
        path = ROOT / document
        before = path.read_text(encoding="utf-8")
        after = renewed(before, document)
        if before == after:
            continue
        if is_check:
            stale.append(document)
        else:
            path.write_text(after, encoding="utf-8")
            print(f"renewed {document}")
    if stale:
        raise SystemExit(f"stale generated blocks in {', '.join(stale)}; run `make format` (or python tools/docs.py)")


if __name__ == "__main__":
    main()
