"""Calls for vectors share the steps of an embedding model, each with its part of a batch, so that none waits long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from subsecond.backends.batch import Float32
from subsecond.core.errors import SubsecondError
from subsecond.serve.served_model import ServedEmbedder

MAX_BATCH_TOKENS = 8192


class _Call:
    """Texts of one request as token ids, the vectors so far, and where the next text is."""

    def __init__(self, sequences: Sequence[Sequence[int]], width: int) -> None:
        self.sequences = sequences
        self.vectors: Float32 = np.empty((len(sequences), width), np.float32)
        self.num_done = 0
        self.done: asyncio.Future[Float32] = asyncio.get_running_loop().create_future()


class EmbeddingBatches:
    """One model's calls. Used on one event loop; the model computes in a thread, one batch at a time."""

    def __init__(self, embedder: ServedEmbedder) -> None:
        self._embedder = embedder
        self._calls: list[_Call] = []
        self._worker: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, "subsecond-embedding")

    async def embed(self, sequences: Sequence[Sequence[int]]) -> Float32:
        """Unit vectors float32 [sequences, width]; a caller that is cancelled gives its place up."""
        call = _Call(sequences, self._embedder.width)
        self._calls.append(call)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        try:
            return await call.done
        finally:
            if call in self._calls:
                self._calls.remove(call)

    def close(self) -> None:
        """End the thread; the model is left open."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        """Compute batch after batch as long as there are calls."""
        loop = asyncio.get_running_loop()
        try:
            while self._calls:
                batch = self._next_batch()
                sequences = [sequence for call, start, end in batch for sequence in call.sequences[start:end]]
                try:
                    vectors = await loop.run_in_executor(self._pool, self._embedder.embed_tokens, sequences)
                except Exception as error:
                    self._fail([call for call, _, _ in batch], error)
                    continue
                self._deliver(batch, vectors)
        finally:
            self._worker = None

    def _next_batch(self) -> list[tuple[_Call, int, int]]:
        """Texts [start, end) of each call, at least one of each, by an equal share of the tokens of a batch."""
        share = MAX_BATCH_TOKENS // len(self._calls)
        batch = []
        for call in self._calls:
            start = end = call.num_done
            num_tokens = 0
            while end < len(call.sequences):
                num_tokens += len(call.sequences[end])
                if end > start and num_tokens > share:
                    break
                end += 1
            batch.append((call, start, end))
        return batch

    def _deliver(self, batch: list[tuple[_Call, int, int]], vectors: Float32) -> None:
        first = 0
        for call, start, end in batch:
            call.vectors[start:end] = vectors[first : first + end - start]
            first += end - start
            call.num_done = end
            if end == len(call.sequences) and not call.done.done():
                call.done.set_result(call.vectors)
                self._calls.remove(call)

    def _fail(self, calls: list[_Call], error: Exception) -> None:
        """End calls by an error; an exception object for each, because raising one changes its traceback."""
        for call in calls:
            if call in self._calls:
                self._calls.remove(call)
            if not call.done.done():
                failure = SubsecondError(f"the step that computed these vectors failed: {error!r}")
                failure.__cause__ = error
                call.done.set_exception(failure)
