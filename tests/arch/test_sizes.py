"""Files stay within 500 lines and functions within 60, in Python and in C++."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.arch.source_tree import CPP_SUFFIXES, NATIVE, ROOT, cpp_files, python_files, relative, report

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

# A brace that opens one of these is no function's body, so the functions inside it are still looked for.
CONTAINER = re.compile(r"\b(namespace|struct|class|enum|union)\b|\bextern\s*$")
ATTRIBUTE = re.compile(r"\b(?:alignas|__attribute__)\s*\((?:[^()]|\([^()]*\))*\)")
LITERAL_OR_COMMENT = re.compile(
    r'R"(?P<raw>\w*)\(.*?\)(?P=raw)"' r'|"(?:\\.|[^"\\\n])*"' r"|(?<!\w)'(?:\\.|[^'\\\n])+'" r"|//[^\n]*|/\*.*?\*/",
    re.DOTALL,
)


def source_files() -> list[Path]:
    python = python_files(ROOT / "src", ROOT / "tests", ROOT / "tools", ROOT / "bench")
    return [*python, *cpp_files(NATIVE, ROOT / "bench")]


def python_functions(text: str) -> list[tuple[str, int, int]]:
    """Return (name, first line, number of lines) of every function, decorators left out."""
    nodes = ast.walk(ast.parse(text))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions]


def without_literals(text: str) -> str:
    """Return C++ text with comments, strings, preprocessor lines and attributes blanked; lines stay where they are."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = LITERAL_OR_COMMENT.sub(blank, text)
    return re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", blank, text, flags=re.MULTILINE)


def cpp_functions(text: str) -> list[tuple[str, int, int]]:
    """Return (heading, first line, number of lines) of every function, found by its outermost braces.

    A block is a function's body when only namespaces and types surround it and no `=` stands before it.
    """
    found = []
    stack: list[bool] = []  # for every open brace: does it only contain declarations?
    heading, start = "", 0
    since = 0
    text = without_literals(text)
    for match in re.finditer(r"[{};]", text):
        if match[0] == "{":
            before = text[since : match.start()]
            declaration = ATTRIBUTE.sub("", before)
            is_container = bool(CONTAINER.search(declaration)) and "(" not in declaration
            if not is_container and all(stack):
                heading = " ".join(declaration.split())
                start = text.count("\n", 0, since + len(before) - len(before.lstrip())) + 1
            stack.append(is_container)
        elif match[0] == "}" and stack:
            was_container = stack.pop()
            if not was_container and all(stack) and not heading.endswith("="):
                found.append((heading, start, text.count("\n", 0, match.start()) + 2 - start))
        since = match.end()
    return found


def too_long(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    functions = cpp_functions(text) if path.suffix in CPP_SUFFIXES else python_functions(text)
    return [
        f"{relative(path)}:{line}: {name[:80]} has {num_lines} lines"
        for name, line, num_lines in functions
        if num_lines > MAX_FUNCTION_LINES
    ]


def test_files_are_short() -> None:
    faults = []
    for path in source_files():
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_FILE_LINES:
            faults.append(f"{relative(path)}:{MAX_FILE_LINES + 1}: the file has {num_lines} lines")
    assert not faults, report(f"A file has at most {MAX_FILE_LINES} lines; split it by concept:", faults)


def test_functions_are_short() -> None:
    faults = [fault for path in source_files() for fault in too_long(path)]
    assert not faults, report(f"A function has at most {MAX_FUNCTION_LINES} lines; give its parts names:", faults)


def test_cpp_functions_are_measured() -> None:
    text = """
#define OPEN {
namespace subsecond::scalar {
// a stray brace { in a comment
struct alignas(64) Block {
  int size() const { return '{' + 1; }
};
constexpr int kSizes[] = {
    1, 2};
void gemm(int rows,
          int columns) {
  for (int row = 0; row < rows; ++row) {
    use("}", columns);
  }
}
}  // namespace subsecond::scalar
"""
    assert cpp_functions(text) == [
        ("int size() const", 6, 1),
        ("void gemm(int rows, int columns)", 10, 6),
    ]


def test_python_functions_are_measured() -> None:
    assert python_functions("class A:\n    def b(self):\n        return 1\n") == [("b", 2, 2)]
