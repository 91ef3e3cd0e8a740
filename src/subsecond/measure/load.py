"""Sends requests to one target as arrivals say and keeps what came of each, failures included; judges nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subsecond.measure.arrivals import Arrivals, Closed
from subsecond.measure.energy import EnergyMeter
from subsecond.measure.process_reading import machine_busy_seconds
from subsecond.measure.target import Reading, Target, Trace
from subsecond.measure.workload import Ask

SETTLE_S = 2.0  # within which a target gives back what its requests held
SETTLE_STEP_S = 0.02
IDLE_WAIT_S = 1.0
IDLE_RATIO = 1e-6  # a share of blocks is a float, so nothing in use need not be 0 exactly


@dataclass(frozen=True, slots=True)
class Sample:
    """One load on one target; times of the traces count from its beginning.

    other_cpu_s     processor time that other programs took meanwhile; None where that cannot be told
    blocks_lost     key/value blocks in use afterwards beyond those before, where the target counts them
    blocks_lost_ratio  the same as a share of all blocks
    requests_left   requests that the target still had open afterwards beyond those before
    """

    duration_s: float
    traces: tuple[Trace, ...]
    cpu_s: float | None
    other_cpu_s: float | None
    energy_j: float | None
    energy_method: str
    resident_bytes: int | None
    peak_bytes: int | None
    blocks_lost: int
    blocks_lost_ratio: float
    requests_left: int

    def to_json(self) -> dict[str, Any]:
        """JSON data that `from_json` reads back."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "traces"}
        return {**content, "traces": [trace.to_json(0.0) for trace in self.traces]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Sample:
        """What `to_json` wrote."""
        return cls(**{**content, "traces": tuple(map(Trace.from_json, content["traces"]))})

    @property
    def answered(self) -> list[Trace]:
        """Requests that were answered."""
        return [trace for trace in self.traces if trace.error is None]


async def run_load(target: Target, asks: Sequence[Ask], arrivals: Arrivals, timeout_s: float) -> tuple[Trace, ...]:
    """The traces of all requests, in their order; one that fails or takes longer than `timeout_s` has an `error`."""
    if isinstance(arrivals, Closed):
        found: list[Trace | None] = [None] * len(asks)
        waiting = iter(enumerate(asks))
        clients = (_client(target, waiting, found, timeout_s) for _ in range(min(arrivals.concurrency, len(asks))))
        await _all_or_none(clients)
        assert all(trace is not None for trace in found)
        return tuple(trace for trace in found if trace is not None)
    start_s = time.perf_counter()
    due = [start_s + at_s for at_s in arrivals.times_s]
    made: list[Trace | None] = [None] * len(asks)

    async def send(index: int) -> None:
        await asyncio.sleep(due[index] - time.perf_counter())
        trace = await _answer(target, asks[index], timeout_s)
        # who comes at a time waits from then on, also while this program is late
        trace.start_s = due[index]
        made[index] = trace

    await _all_or_none(send(index) for index in range(len(asks)))
    return tuple(trace for trace in made if trace is not None)


async def measure_load(
    target: Target, asks: Sequence[Ask], arrivals: Arrivals, meter: EnergyMeter, timeout_s: float
) -> Sample:
    """Run a load with all that is measured around it."""
    target.reset_peak()
    before = await _idle(target)
    busy_before_s = machine_busy_seconds()
    own_before_s = time.process_time()
    meter.start()
    start_s = time.perf_counter()
    traces = await run_load(target, asks, arrivals, timeout_s)
    last_s = max((trace.stamps_s[-1] for trace in traces if trace.stamps_s), default=time.perf_counter())
    after = await target.reading()
    cpu_s = None if before.cpu_s is None or after.cpu_s is None else after.cpu_s - before.cpu_s
    energy = meter.stop(cpu_s, is_local=target.is_local)
    own_s = time.process_time() - own_before_s + (0.0 if target.is_in_process else cpu_s or 0.0)
    busy_s = machine_busy_seconds()
    other_s = None if busy_s is None or busy_before_s is None else max(0.0, busy_s - busy_before_s - own_s)
    settled = await _settled(target, before)
    lost, lost_ratio = _lost_blocks(before, settled)
    return Sample(
        duration_s=last_s - start_s,
        traces=tuple(_from(trace, start_s) for trace in traces),
        cpu_s=cpu_s,
        other_cpu_s=other_s if cpu_s is not None else None,
        energy_j=energy.joules,
        energy_method=energy.method,
        resident_bytes=after.resident_bytes,
        peak_bytes=after.peak_bytes,
        blocks_lost=lost,
        blocks_lost_ratio=lost_ratio,
        requests_left=max(0, (settled.num_open or 0) - (before.num_open or 0)),
    )


async def _client(
    target: Target, waiting: Iterator[tuple[int, Ask]], found: list[Trace | None], timeout_s: float
) -> None:
    for index, ask in waiting:
        found[index] = await _answer(target, ask, timeout_s)


async def _answer(target: Target, ask: Ask, timeout_s: float) -> Trace:
    """The trace of one request, with an error instead of an exception."""
    start_s = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            return await target.ask(ask.prompt_ids, ask.num_new_tokens)
    except TimeoutError:
        error = f"not answered within {timeout_s:g} s"
    except Exception as failure:  # whatever it is, it is told in the row and ends no other request
        error = f"{type(failure).__name__}: {failure}"
    return Trace(start_s=start_s, num_prompt_tokens=len(ask.prompt_ids), error=error)


async def _all_or_none(work: Iterable[Any]) -> None:
    """Run coroutines at once; when one fails or this is cancelled, none goes on."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _idle(target: Target) -> Reading:
    """What the target holds before a load, once requests before it are over."""
    deadline_s = time.perf_counter() + IDLE_WAIT_S
    while (now := await target.reading()).num_open and time.perf_counter() < deadline_s:
        await asyncio.sleep(SETTLE_STEP_S)
    return now


async def _settled(target: Target, before: Reading) -> Reading:
    """What the target holds once it has given back what it will give back."""
    deadline_s, wait_s = time.perf_counter() + SETTLE_S, SETTLE_STEP_S
    while True:
        now = await target.reading()
        is_idle = (now.num_open or 0) <= (before.num_open or 0) and _lost_blocks(before, now)[1] == 0
        if is_idle or time.perf_counter() > deadline_s:
            return now
        await asyncio.sleep(wait_s)
        wait_s *= 2  # asking a server costs it time


def _lost_blocks(before: Reading, after: Reading) -> tuple[int, float]:
    """Blocks in use afterwards beyond those before, their number where it is known, and as a share of all."""
    if before.num_free_blocks is not None and after.num_free_blocks is not None:
        lost = max(0, before.num_free_blocks - after.num_free_blocks)
        return lost, lost / (after.num_blocks or 1)
    if before.kv_usage_ratio is not None and after.kv_usage_ratio is not None:
        lost_ratio = after.kv_usage_ratio - before.kv_usage_ratio
        return 0, lost_ratio if lost_ratio > IDLE_RATIO else 0.0
    return 0, 0.0


def _from(trace: Trace, origin_s: float) -> Trace:
    return Trace.from_json(trace.to_json(origin_s))
