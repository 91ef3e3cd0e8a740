"""A target without a model, which answers at once, fails where it is told to, and may leak."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from subsecond.measure.target import Reading, Trace


class FakeTarget:
    """Implements `Target`.

    failures     requests, counted from 0 over all, that raise
    slow         those whose tokens come `slow_s` later; nobody waits for that, the stamps only say so
    late         those that are answered once `release` is set
    leak_blocks  blocks that each request keeps
    """

    is_local = True
    is_in_process = True

    def __init__(
        self,
        name: str = "fake",
        *,
        failures: Mapping[int, Exception] | None = None,
        slow: frozenset[int] = frozenset(),
        slow_s: float = 0.0,
        late: frozenset[int] = frozenset(),
        leak_blocks: int = 0,
        log: list[str] | None = None,
    ) -> None:
        self.name = name
        self.asked: list[tuple[tuple[int, ...], int]] = []
        self.most_open = 0
        self.num_open = 0
        self.num_prepared = 0
        self.is_paused = False
        self.release = asyncio.Event()
        self._failures = dict(failures or {})
        self._slow = slow
        self._slow_s = slow_s
        self._late = late
        self._leak_blocks = leak_blocks
        self._num_free = 100
        self._log = [] if log is None else log

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "fake"}

    async def prepare(self) -> None:
        self.num_prepared += 1

    async def ask(self, prompt_ids: tuple[int, ...], num_new_tokens: int) -> Trace:
        assert not self.is_paused
        index = len(self.asked)
        self.asked.append((prompt_ids, num_new_tokens))
        self._log.append(self.name)
        trace = Trace(start_s=time.perf_counter(), num_prompt_tokens=len(prompt_ids))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        self._num_free -= self._leak_blocks
        try:
            await asyncio.sleep(0.001)
            if index in self._late:
                await self.release.wait()
        finally:
            self.num_open -= 1
        if index in self._failures:
            raise self._failures[index]
        first_s = time.perf_counter() + (self._slow_s if index in self._slow else 0.0)
        trace.stamps_s = [first_s + step * 1e-3 for step in range(num_new_tokens)]
        trace.num_new_tokens = num_new_tokens
        trace.num_cached_tokens = 0
        return trace

    async def reading(self) -> Reading:
        return Reading(
            cpu_s=time.process_time(),
            resident_bytes=10,
            peak_bytes=20,
            num_open=self.num_open,
            num_blocks=100,
            num_free_blocks=self._num_free,
        )

    def reset_peak(self) -> None:
        pass

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
