"""What tests of the commands share: a model without weights, and standard input."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.fake_model import FakeModel


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()

    def load(name: str, **options: Any) -> FakeModel:
        fake.loaded = (name, options)
        return fake

    monkeypatch.setattr("subsecond.api.load", load)
    return fake


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], None]:
    """Sets standard input."""

    def give(content: str | bytes) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return give
