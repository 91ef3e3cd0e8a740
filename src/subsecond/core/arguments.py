"""Checks of the types of arguments that programs give; knows nothing of what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from subsecond.core.errors import InputError


def check_load_arguments(model: object, **numbers: object) -> None:
    """InputError unless `model` is a text or a path, and each of `numbers` a whole number or None."""
    if not isinstance(model, str | Path):
        raise InputError(f"model is {type(model).__name__}; give a path or the name of a model")
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"{name} is {type(value).__name__}; give a whole number, or None")


def check_texts(texts: object) -> None:
    """InputError unless `texts` is a list, tuple or other sequence of texts; a text alone is none."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"texts is {type(texts).__name__}; give a list of texts, for one text a list of one")
