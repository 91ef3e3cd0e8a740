"""A server on a port of its own, run in a thread of the test's process, with models that need no weights."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx

from subsecond.core.errors import SubsecondError
from subsecond.serve.app import ServerApp, make_app
from subsecond.serve.auth import ApiKeys, parse_keys
from subsecond.serve.registry import Loaded, ModelRegistry, ModelSpec
from subsecond.serve.server import HttpServer
from subsecond.serve.settings import ServeSettings
from tests.contract.serve.scripted_model import ScriptedEmbedder, ScriptedModel

START_TIMEOUT_S = 60.0


class ScriptedLoader:
    """Makes a scripted model for each name, an embedding one for names with "embed" in them; keeps all it made."""

    def __init__(self) -> None:
        self.models: dict[str, ScriptedModel] = {}
        self.embedders: dict[str, ScriptedEmbedder] = {}
        self.num_bytes: dict[str, int] = {}
        self.loads: list[str] = []
        self.failures: dict[str, SubsecondError] = {}
        self.hold = threading.Event()
        self.hold.set()

    def estimate_bytes(self, spec: ModelSpec) -> int:
        return self.num_bytes.get(spec.name, 100)

    def load(self, spec: ModelSpec) -> Loaded:
        assert self.hold.wait(START_TIMEOUT_S), "the test that holds the loading has forgotten it"
        self.loads.append(spec.name)
        if spec.name in self.failures:
            raise self.failures[spec.name]
        num_bytes = self.estimate_bytes(spec)
        if "embed" in spec.name:
            self.embedders[spec.name] = ScriptedEmbedder(spec.name)
            return Loaded(num_bytes, embedder=self.embedders[spec.name])
        self.models[spec.name] = ScriptedModel(spec.name)
        return Loaded(num_bytes, model=self.models[spec.name])


class LiveServer:
    """A running server. `model` is the first one's, once the server is ready; `url` where it listens."""

    def __init__(
        self,
        names: Sequence[str] = ("scripted", "embedding"),
        *,
        keys: str = "",
        loader: Any = None,
        is_ready: bool = True,
        on_forced: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> None:
        """Start; `keys` are lines of a key file. Unless `is_ready` is false, return once the first model is loaded."""
        self.settings = ServeSettings(**{"port": 0, "drain_timeout_s": 5.0, **settings})
        self.loader = ScriptedLoader() if loader is None else loader
        specs = [ModelSpec(name, f"/models/{name}.gguf") for name in names]
        registry = ModelRegistry(
            specs, self.loader, budget_bytes=self.settings.memory_budget_bytes, wait_s=self.settings.load_timeout_s
        )
        parsed = ApiKeys(parse_keys(keys, "the test"))
        self.app: ServerApp = make_app(registry, self.settings, parsed)
        self.server = HttpServer(self.app, on_forced=on_forced)
        self.url = self.server.address
        self.error: BaseException | None = None
        self.was_ready = False
        self._is_stopping = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(names[0],), name="test-server")
        self._thread.start()
        if is_ready:
            self.wait_ready()

    @property
    def model(self) -> ScriptedModel:
        model = self.loader.models[self.app.context.registry.names[0]]
        assert isinstance(model, ScriptedModel)
        return model

    def wait_ready(self) -> None:
        """Return once the first model is loaded, or raise what came of it."""
        assert self._ready.wait(START_TIMEOUT_S), "the server did not come up"
        if self.error is not None:
            raise self.error

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client of this server, with a patient time-out."""
        # reading certificates, of which this server has none, would take longer than most tests
        return httpx.Client(**{"base_url": self.url, "timeout": 60.0, "verify": False, **options})

    def exchange(self, *pieces: bytes, timeout_s: float = 60.0) -> bytes:
        """What comes back for bytes that need not be HTTP, until the server closes the connection."""
        with self.connect(timeout_s) as connection:
            received = b""
            with suppress(ConnectionResetError, BrokenPipeError):
                for piece in pieces:
                    connection.sendall(piece)
            # a server that refuses need not wait for all pieces: what it said before it closed is there nevertheless
            with suppress(ConnectionResetError):
                while data := connection.recv(2**16):
                    received += data
            return received

    def connect(self, timeout_s: float = 60.0) -> socket.socket:
        """A connection to the server."""
        return socket.create_connection(self.server.socket.getsockname()[:2], timeout_s)

    def call_in_loop(self, function: Callable[[], None]) -> None:
        """Run a function on the server's event loop, and wait for it."""
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        loop = self.server._loop
        assert loop is not None
        loop.call_soon_threadsafe(run)
        assert done.wait(START_TIMEOUT_S)

    def begin_stop(self) -> None:
        """What the first signal does; a second one would force the end."""
        if not self._is_stopping:
            self._is_stopping = True
            self.server.stop()

    def stop(self) -> None:
        """Drain and wait for the end; may be called again."""
        self.begin_stop()
        self._thread.join(START_TIMEOUT_S)
        assert not self._thread.is_alive(), "the server did not end"

    def _run(self, first: str) -> None:
        try:
            self.server.run(first, self._note_ready)
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def _note_ready(self, address: str) -> None:
        assert address == self.url
        self.was_ready = True
        self._ready.set()

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
