"""A running server with the small model, shared by the tests of client libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import subsecond
from subsecond.engine.protocol import EngineStats
from subsecond.serve.registry import Loaded, ModelSpec
from tests.contract.serve.live_server import LiveServer

SMALL_MODEL = "smollm2-135m"


class SmallModelLoader:
    """Loads the one model, whatever its name, and keeps it for tests to compare with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.model: subsecond.Model | None = None

    def estimate_bytes(self, _: ModelSpec) -> int:
        return self._path.stat().st_size

    def load(self, spec: ModelSpec) -> Loaded:
        self.model = subsecond.load(self._path, context_tokens=4096)
        return Loaded(self.estimate_bytes(spec), model=self.model)


def engine_stats(server: LiveServer) -> EngineStats:
    """The counts of the engine behind a server with the small model."""
    return small_model(server).engine.stats()


def is_idle(server: LiveServer) -> bool:
    """Whether nothing is left of any request."""
    stats = engine_stats(server)
    return stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks


def small_model(server: LiveServer) -> subsecond.Model:
    """The model behind such a server."""
    loader = server.loader
    assert isinstance(loader, SmallModelLoader)
    assert loader.model is not None
    return loader.model


@pytest.fixture(scope="session")
def smollm2_server(smollm2_path: Path) -> Iterator[LiveServer]:
    """A server without keys, on a port of its own, in a thread of this process."""
    with LiveServer([SMALL_MODEL], loader=SmallModelLoader(smollm2_path)) as server:
        yield server


@pytest.fixture(scope="session")
def scripting() -> Iterator[LiveServer]:
    """A server whose model says what it is told to, for what a small model does not do by itself."""
    with LiveServer() as server:
        yield server


@pytest.fixture
def scripted_server(scripting: LiveServer) -> Iterator[LiveServer]:
    """The same; what a test adds to the answers is gone after it."""
    yield scripting
    scripting.model.answers.clear()


@pytest.fixture(scope="session")
def smollm2_text(smollm2_server: LiveServer) -> str:
    """What the model itself answers to the question of `tests.e2e.client_cases`, to its natural end or 24 tokens."""
    from tests.e2e.client_cases import QUESTION

    return small_model(smollm2_server).generate(QUESTION, max_tokens=24).text
