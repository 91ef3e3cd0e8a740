"""Our engine in this process as a target of benchmarks, through its public protocol; loads nothing."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from typing import Any

from subsecond.engine.protocol import Engine
from subsecond.engine.request import Request, SamplingParams
from subsecond.measure import process_reading
from subsecond.measure.target import Reading, Trace


class EngineTarget:
    """Asks an engine that somebody else has loaded and will close. Implements `Target`.

    A time is the one at which this reader sees a token. Processor time and memory are those of the whole process.
    """

    is_local = True
    is_in_process = True

    def __init__(self, engine: Engine, description: Mapping[str, Any], *, name: str = "engine") -> None:
        self.name = name
        self._engine = engine
        self._description = {"kind": "engine in this process", **description}
        self._numbers = itertools.count(1)

    @property
    def description(self) -> Mapping[str, Any]:
        """Kind, and what the caller told of the engine."""
        return self._description

    async def prepare(self) -> None:
        """Nothing is to be done: the engine is loaded."""

    async def ask(self, prompt_ids: tuple[int, ...], num_new_tokens: int) -> Trace:
        """Submit one request for exactly that many tokens, the likeliest each time."""
        params = SamplingParams(max_tokens=num_new_tokens, ignore_eos=True)
        request = Request(prompt_ids=prompt_ids, params=params, id=f"bench-{next(self._numbers)}")
        trace = Trace(start_s=time.perf_counter(), num_prompt_tokens=len(prompt_ids))
        stream = self._engine.submit(request)
        async for event in stream:
            if event.token_id is not None:
                trace.stamps_s.append(time.perf_counter())
        trace.num_new_tokens = stream.num_tokens
        trace.num_cached_tokens = stream.cached_tokens
        if stream.finish_reason != "length":
            trace.error = f"the answer ended by {stream.finish_reason!r} after {stream.num_tokens} tokens"
        return trace

    async def reading(self) -> Reading:
        """Counts of the engine, memory and processor time of this process."""
        stats = self._engine.stats()
        resident, peak = process_reading.memory_bytes(os.getpid())
        return Reading(
            cpu_s=time.process_time(),
            resident_bytes=resident,
            peak_bytes=peak,
            num_open=stats.num_running + stats.num_waiting,
            num_blocks=stats.num_blocks,
            num_free_blocks=stats.num_free_blocks,
        )

    def reset_peak(self) -> None:
        """Begin to count this process's peak anew."""
        process_reading.reset_peak(os.getpid())

    def pause(self) -> None:
        """An engine without requests sleeps."""

    def resume(self) -> None:
        """Nothing was stopped."""
