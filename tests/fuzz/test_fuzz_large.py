"""Inputs that use up a limit of their format stay within the reader's bounds of time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.large_inputs import INPUTS
from tests.fuzz.oracle import Oracle

SLOW = {
    "safetensors_many_tensors",
    "template_long_list",
    "template_long_sum",
    "template_many_texts",
    "template_long_comparison",
}
"""These take seconds with allocations traced."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.acceptance] if name in SLOW else []) for name in INPUTS]
)
def test_large_input(name: str, tmp_path: Path) -> None:
    reader, make = INPUTS[name]
    verdict = Oracle(tmp_path).judge(HARNESSES[reader], make())
    assert not verdict.fault, verdict
