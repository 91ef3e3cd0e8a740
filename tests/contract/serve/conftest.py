"""What tests of the server share: one server for all that leave it as they found it, and clients of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedModel


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server without keys, with the models "scripted" and "embedding"; tests leave no state in it."""
    with LiveServer() as live:
        yield live


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


@pytest.fixture
def scripted(server: LiveServer) -> Iterator[ScriptedModel]:
    """The model of `server`; what a test adds to its answers is gone after it."""
    model = server.model
    yield model
    model.answers.clear()
    model.backend.hold_after = None
    model.backend.hold.set()
    model.backend.step_s = 0.0
    model.backend.failure = None
