"""Fixtures shared by all tests; holds no checks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Path of the SmolLM2-135M-Instruct GGUF file.

    SUBSECOND_SMOLLM2 names a copy to use; without it the catalogue's own copy is used, and fetched on first use.
    """
    given = os.environ.get("SUBSECOND_SMOLLM2")
    if given:
        path = Path(given)
        assert path.is_file(), f"SUBSECOND_SMOLLM2={given} names no file"
        return path
    from subsecond.models import catalogue

    return catalogue.ensure("smollm2-135m")
