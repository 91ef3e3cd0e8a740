"""What a long prompt does to the streams beside it: how much longer they wait for tokens, and how long it waits."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench.serving.client import Answer, complete
from bench.serving.commands import Capacity
from bench.serving.loads import random_ids
from bench.serving.percentiles import percentile
from bench.serving.servers import HttpServer

STREAM_PROMPT_TOKENS = 64
STREAM_NEW_TOKENS = 1024
QUIET_S = 10.0
"""How long the streams run undisturbed before each long prompt, for the times between tokens without one."""
SETTLING_S = 1.0


def capacity_beside(num_streams: int, num_long_tokens: int, num_threads: int) -> Capacity:
    """What a server is started for; engines that share their memory among requests need no more than all of them do."""
    of_stream = STREAM_PROMPT_TOKENS + STREAM_NEW_TOKENS
    longest = max(num_long_tokens + 1, of_stream)
    return Capacity(num_threads, num_streams + 1, longest, pool_tokens=num_streams * of_stream + 2 * longest)


@dataclass(frozen=True, slots=True)
class Window:
    """From the moment that a long prompt was sent until its first token, or an undisturbed time."""

    start_s: float
    end_s: float


@dataclass(slots=True)
class Disturbance:
    """What some long prompts did to a number of streams; times between tokens are of all streams together."""

    num_streams: int
    quiet_gaps_ms: list[float] = field(default_factory=list)
    disturbed_gaps_ms: list[float] = field(default_factory=list)
    alone_ttft_ms: list[float] = field(default_factory=list)
    beside_ttft_ms: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The figures of the claim and what they come from."""
        quiet, disturbed = percentile(self.quiet_gaps_ms, 0.99), percentile(self.disturbed_gaps_ms, 0.99)
        alone, beside = statistics.median(self.alone_ttft_ms), statistics.median(self.beside_ttft_ms)
        return {
            "num_streams": self.num_streams,
            "quiet_itl_p50_ms": percentile(self.quiet_gaps_ms, 0.5),
            "quiet_itl_p99_ms": quiet,
            "disturbed_itl_p50_ms": percentile(self.disturbed_gaps_ms, 0.5),
            "disturbed_itl_p99_ms": disturbed,
            "itl_p99_ratio": disturbed / quiet,
            "num_quiet_gaps": len(self.quiet_gaps_ms),
            "num_disturbed_gaps": len(self.disturbed_gaps_ms),
            "alone_ttft_ms": self.alone_ttft_ms,
            "beside_ttft_ms": self.beside_ttft_ms,
            "ttft_ratio": beside / alone,
        }

    def line(self) -> str:
        """The same for a reader."""
        found = self.as_json()
        return (
            f"{self.num_streams:>3} streams: ITL p99 {found['quiet_itl_p99_ms']:.1f} ms alone, "
            f"{found['disturbed_itl_p99_ms']:.1f} ms beside the long prompt ({found['itl_p99_ratio']:.2f}x); its TTFT "
            f"{statistics.median(self.alone_ttft_ms):.0f} ms alone, {statistics.median(self.beside_ttft_ms):.0f} ms "
            f"beside them ({found['ttft_ratio']:.2f}x)"
        )


def gaps_within(answers: Sequence[Answer], window: Window) -> list[float]:
    """Times between tokens, in ms, that lie in a window at least in part: a wait that it began in counts as well."""
    return [
        (after - before) * 1e3
        for answer in answers
        for before, after in itertools.pairwise(answer.stamps_s)
        if after > window.start_s and before < window.end_s
    ]


class LongPrompts:
    """Sends long prompts to one server, alone and beside streams."""

    def __init__(self, server: HttpServer, num_rounds: int, num_long_tokens: int, quiet_s: float = QUIET_S) -> None:
        self._server = server
        self._num_rounds = num_rounds
        self._num_long_tokens = num_long_tokens
        self._quiet_s = quiet_s
        self._numbers = itertools.count()

    async def measure(self, num_streams: int) -> Disturbance:
        """Long prompts alone, then the same number of others beside the streams."""
        found = Disturbance(num_streams)
        for _ in range(self._num_rounds):
            found.alone_ttft_ms.append((await self._send_long()).ttft_ms)
        async with self._streams(num_streams) as answers:
            for _ in range(self._num_rounds):
                start_s = time.perf_counter()
                await asyncio.sleep(self._quiet_s)
                found.quiet_gaps_ms += gaps_within(answers, Window(start_s, time.perf_counter()))
                long = await self._send_long()
                found.beside_ttft_ms.append(long.ttft_ms)
                await asyncio.sleep(SETTLING_S)  # the tokens that came late because of it
                found.disturbed_gaps_ms += gaps_within(answers, Window(long.start_s, long.stamps_s[0]))
        return found

    async def _send_long(self) -> Answer:
        return await complete(self._server.address, self._body(self._num_long_tokens, 1))

    @asynccontextmanager
    async def _streams(self, num_streams: int) -> AsyncIterator[list[Answer]]:
        """Keep as many streams running, each after a short prompt; all their answers as they grow."""
        answers: list[Answer] = []

        async def stream() -> None:
            while True:
                answers.append(Answer())
                body = self._body(STREAM_PROMPT_TOKENS, STREAM_NEW_TOKENS)
                await complete(self._server.address, body, answers[-1])

        tasks = [asyncio.create_task(stream()) for _ in range(num_streams)]
        try:
            while sum(bool(answer.stamps_s) for answer in answers) < num_streams:
                await asyncio.sleep(0.05)
                self._raise_failure(tasks)
            await asyncio.sleep(SETTLING_S)
            yield answers
            self._raise_failure(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _body(self, num_prompt_tokens: int, num_new_tokens: int) -> bytes:
        prompt = random_ids(num_prompt_tokens, f"long prompt {next(self._numbers)}")
        return self._server.body(prompt, num_new_tokens)

    @staticmethod
    def _raise_failure(tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            if task.done():
                task.result()
