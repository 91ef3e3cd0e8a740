"""Every kept input (past faults and cases that reach deep) is read within the limits.

A file is `corpus/READER/NAME.bin`; its name says what is wrong in it, or "accepted". The input of a new fault is added
here, whatever else is tested with it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.oracle import Oracle

CORPUS = Path(__file__).resolve().parent / "corpus"
MAX_CORPUS_BYTES = 1_000_000


def cases() -> list[Path]:
    return sorted(CORPUS.glob("*/*.bin"))


@pytest.mark.parametrize("path", cases(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_kept_input(path: Path, tmp_path: Path) -> None:
    verdict = Oracle(tmp_path).judge(HARNESSES[path.parent.name], path.read_bytes())
    assert not verdict.fault, verdict
    if path.stem.startswith("accepted"):
        assert verdict.outcome == "accepted"


def test_corpus_is_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in cases()) < MAX_CORPUS_BYTES
    assert {path.parent.name for path in cases()} == set(HARNESSES)
