"""The models of a server by name: loaded when asked for, kept while in use, let go when memory is needed."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from subsecond.core.errors import InputError, ResourceError, SubsecondError
from subsecond.serve.answers import Answering
from subsecond.serve.embedding_batches import EmbeddingBatches
from subsecond.serve.errors import UnavailableError, UnknownModelError
from subsecond.serve.metrics import Metrics, ModelMetrics
from subsecond.serve.served_model import ServedEmbedder, ServedModel

RETRY_AFTER_S = 5.0
MAX_NAMES_TOLD = 50
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that may be served: the name that requests give, and what the loader is given."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader brings: a model that answers or one that embeds, and the bytes it holds."""

    num_bytes: int
    model: ServedModel | None = None
    embedder: ServedEmbedder | None = None


class ModelLoader(Protocol):
    """Loads models; called in threads of their own, never on the event loop."""

    def estimate_bytes(self, spec: ModelSpec) -> int:
        """Return about how much memory the model will hold once loaded: weights and key/value blocks."""

    def load(self, spec: ModelSpec) -> Loaded:
        """Load the model; raises SubsecondError if that cannot be done."""


class Served:
    """A loaded model, in the hands of a request that holds a lease on it. `last_use` grows with each lease's end."""

    def __init__(self, spec: ModelSpec, loaded: Loaded, metrics: ModelMetrics) -> None:
        self.spec = spec
        self.loaded = loaded
        self.metrics = metrics
        self.num_leases = 0
        self.last_use = 0

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.spec.name

    @property
    def model(self) -> ServedModel:
        """The language model; InputError for an embedding model, naming what it is for."""
        if self.loaded.model is None:
            raise InputError(f"{self.name} is an embedding model: it gives vectors, no answers; ask /v1/embeddings")
        return self.loaded.model

    @property
    def embedder(self) -> ServedEmbedder:
        """The embedding model; InputError for a language model, naming what it is for."""
        if self.loaded.embedder is None:
            raise InputError(f"{self.name} is a language model: it gives answers, no vectors; name an embedding model")
        return self.loaded.embedder

    @property
    def part(self) -> ServedModel | ServedEmbedder:
        """Whichever of both it is."""
        part = self.loaded.model or self.loaded.embedder
        assert part is not None, "a loader brings one of both"
        return part

    @property
    def is_alive(self) -> bool:
        """Whether it can take requests; an engine that met an error of ours cannot."""
        return self.loaded.model is None or self.loaded.model.engine.stats().is_alive

    @cached_property
    def answering(self) -> Answering:
        """What starts orders on the language model."""
        return Answering(self.model, meter=self.metrics)

    @cached_property
    def embeddings(self) -> EmbeddingBatches:
        """What computes vectors of the embedding model."""
        return EmbeddingBatches(self.embedder)

    def close(self) -> None:
        """Free what it holds; called when nobody has a lease."""
        if "answering" in self.__dict__:
            self.answering.close()
        if "embeddings" in self.__dict__:
            self.embeddings.close()
        self.part.close()


@dataclass(frozen=True, slots=True)
class ModelState:
    """What is told of a model; `served` is None unless it is loaded, `num_bytes` then what it holds."""

    spec: ModelSpec
    is_loading: bool
    num_leases: int
    num_bytes: int
    served: Served | None
    last_error: str | None


class _Entry:
    """One name: its loaded model, the task that loads it, and the requests that wait for that."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.served: Served | None = None
        self.loading: asyncio.Task[Served | SubsecondError] | None = None
        self.num_waiting = 0
        self.last_error: str | None = None


class ModelRegistry:
    """Names to models. Used on one event loop; loading and closing happen in threads, one model at a time.

    `budget_bytes` bounds what all loaded models hold together, `wait_s` how long a request waits for its model.
    """

    def __init__(
        self, specs: Iterable[ModelSpec], loader: ModelLoader, *, budget_bytes: int | None = None, wait_s: float = 600.0
    ) -> None:
        self._entries: dict[str, _Entry] = {}
        for spec in specs:
            if spec.name in self._entries:
                raise InputError(f"two models have the name {spec.name!r}; give one another, as NAME=MODEL")
            self._entries[spec.name] = _Entry(spec)
        if not self._entries:
            raise InputError("no model is given; name at least one")
        self._loader = loader
        self._budget_bytes = budget_bytes
        self._wait_s = wait_s
        self.metrics = Metrics()
        self._uses = itertools.count(1)
        self._loading_lock = asyncio.Lock()
        self._released = asyncio.Event()  # set whenever a lease or the waiting for one ends
        self._leaving: dict[Served, asyncio.Task[None]] = {}  # no request gets them any more

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order they were given."""
        return tuple(self._entries)

    def states(self) -> tuple[ModelState, ...]:
        """Return what is told of each model, in their order."""
        return tuple(
            ModelState(
                spec=entry.spec,
                is_loading=entry.loading is not None,
                num_leases=entry.num_waiting + (0 if entry.served is None else entry.served.num_leases),
                num_bytes=0 if entry.served is None else entry.served.loaded.num_bytes,
                served=entry.served,
                last_error=entry.last_error,
            )
            for entry in self._entries.values()
        )

    def check_name(self, name: str) -> None:
        """UnknownModelError unless there is a model of that name; the message lists those that there are."""
        if name not in self._entries:
            names = list(self._entries)
            more = f" and {len(names) - MAX_NAMES_TOLD} more" if len(names) > MAX_NAMES_TOLD else ""
            raise UnknownModelError(
                f"there is no model {name[:100]!r} here; there {'is' if len(names) == 1 else 'are'} "
                f"{', '.join(names[:MAX_NAMES_TOLD])}{more}"
            )

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Served]:
        """Hold a model, loading it if need be; while held it is not let go.

        Raises:
            UnknownModelError: there is none of that name.
            UnavailableError: it could not be loaded, or not in time. The next request tries again.
        """
        self.check_name(name)
        entry = self._entries[name]
        if entry.served is not None and not entry.served.is_alive:
            self._retire(entry)
        served = entry.served or await self._wait_loaded(entry)
        served.num_leases += 1
        try:
            yield served
        finally:
            served.num_leases -= 1
            served.last_use = next(self._uses)
            self._released.set()

    async def renew(self, name: str) -> None:
        """Load a model anew whose engine stopped working, once nobody uses it; for who would only watch it."""
        with suppress(UnavailableError):  # it is told by the state of the model
            async with self.lease(name):
                pass

    async def let_go(self, name: str) -> bool:
        """Close a model that nobody holds, so that its memory is free; False if it is held or not loaded."""
        self.check_name(name)
        entry = self._entries[name]
        if entry.served is None or entry.served.num_leases or entry.num_waiting:
            return False
        await asyncio.wait({self._retire(entry)})
        return True

    async def aclose(self) -> None:
        """Wait for what is being loaded and close every model; nobody should hold one any more."""
        for entry in self._entries.values():
            if entry.loading is not None:
                await entry.loading
            if entry.served is not None:
                served, entry.served = entry.served, None
                await asyncio.to_thread(served.close)
        for served, task in list(self._leaving.items()):
            task.cancel()
            await asyncio.to_thread(served.close)

    async def _wait_loaded(self, entry: _Entry) -> Served:
        """Return the loaded model; whoever comes first has it loaded, and the others wait for the same load."""
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load(entry))
        task = entry.loading
        entry.num_waiting += 1
        try:
            await asyncio.wait({task}, timeout=self._wait_s)  # a waiter that is cancelled leaves the load alone
        finally:
            entry.num_waiting -= 1
            self._released.set()
        if not task.done():
            raise UnavailableError(
                f"{entry.spec.name} is still being loaded; ask again later",
                code="model_loading",
                retry_after_s=RETRY_AFTER_S,
            )
        result = task.result()
        if isinstance(result, Served):
            return result
        raise UnavailableError(
            f"{entry.spec.name} could not be loaded: {result}", code="model_not_loaded", retry_after_s=RETRY_AFTER_S
        ) from result

    async def _load(self, entry: _Entry) -> Served | SubsecondError:
        """Load a model and return it, or why it could not be."""
        try:
            async with self._loading_lock:
                if self._budget_bytes is not None:
                    num_bytes = await asyncio.to_thread(self._loader.estimate_bytes, entry.spec)
                    await self._make_room(num_bytes, entry.spec.name, self._budget_bytes)
                loaded = await asyncio.to_thread(self._loader.load, entry.spec)
                entry.served = Served(entry.spec, loaded, self.metrics.of(entry.spec.name))
            entry.last_error = None
            return entry.served
        except (SubsecondError, OSError, MemoryError) as error:
            entry.last_error = "the memory does not suffice" if isinstance(error, MemoryError) else str(error)
            _log.error("%s could not be loaded: %s", entry.spec.name, entry.last_error)
            return SubsecondError(entry.last_error)
        except Exception as error:
            entry.last_error = f"an error of ours, {type(error).__name__}; the log tells more"
            _log.exception("%s could not be loaded", entry.spec.name)
            return SubsecondError(entry.last_error)
        finally:
            entry.loading = None

    async def _make_room(self, num_bytes: int, name: str, budget: int) -> None:
        """Close idle models, least recently used first, until `num_bytes` more fit into the budget."""
        if num_bytes > budget:
            raise ResourceError(
                f"{name} needs about {num_bytes / 1e6:.0f} MB, but the memory budget is {budget / 1e6:.0f} MB; start "
                "the server with a larger --memory-budget-mb, or with fewer --context-tokens"
            )
        try:
            async with asyncio.timeout(self._wait_s):
                while self._held_bytes() + num_bytes > budget:
                    await self._free_one()
        except TimeoutError:
            raise ResourceError(f"the models that are loaded were in use for {self._wait_s:g} s") from None

    def _held_bytes(self) -> int:
        served = [entry.served for entry in self._entries.values() if entry.served is not None]
        return sum(each.loaded.num_bytes for each in (*served, *self._leaving))

    async def _free_one(self) -> None:
        """Let the least recently used model go, an idle one if there is one, and wait until one is closed.

        One in use gets no new requests, which wait until it is loaded anew: else it could be in use for ever.
        """
        if not self._leaving:
            # one whose requests are about to take it up is not taken from under them
            found = [entry for entry in self._entries.values() if entry.served is not None and not entry.num_waiting]
            if not found:
                self._released.clear()
                await self._released.wait()
                return
            self._retire(min(found, key=_eviction_order))
        await asyncio.wait(self._leaving.values(), return_when=asyncio.FIRST_COMPLETED)

    def _retire(self, entry: _Entry) -> asyncio.Task[None]:
        """Give a model to no more requests and have it closed, by this task, when those that hold it are done."""
        served, entry.served = entry.served, None
        assert served is not None
        task = self._leaving[served] = asyncio.create_task(self._close_when_free(served))
        return task

    async def _close_when_free(self, served: Served) -> None:
        while served.num_leases:
            self._released.clear()
            await self._released.wait()
        await asyncio.to_thread(served.close)
        del self._leaving[served]


def _eviction_order(entry: _Entry) -> tuple[bool, int]:
    assert entry.served is not None
    return entry.served.num_leases > 0, entry.served.last_use
