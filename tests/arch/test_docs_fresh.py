"""Generated documents match the code, and every path that the written ones name exists."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.arch.source_tree import ROOT, report

PATH_IN_BACKTICKS = re.compile(r"`((?:src|native|tests|tools|docs|bench|\.ci)/[\w./-]*)`")


def test_generated_blocks_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "tools" / "docs.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_named_paths_exist(document: str) -> None:
    missing = []
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), start=1):
        missing += [
            f"{document}:{number}: {path}" for path in PATH_IN_BACKTICKS.findall(line) if not (ROOT / path).exists()
        ]
    assert not missing, report("A path named in a document exists:", missing)
