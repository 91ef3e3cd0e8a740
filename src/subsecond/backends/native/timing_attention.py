"""Times attention by size and grouping of heads, and how its work spreads over threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from subsecond import _native
from subsecond.backends.native.trial import Runner, Trial, WeightPool
from subsecond.backends.probe import AttentionFigures, AttentionSpeed
from subsecond.graph.ops import Attention, Rotary

HEAD_DIMS = (64, 128)
GROUPS = (1, 2, 3, 4, 5, 6, 7, 8)
SHARED_GROUP = 4
CONTEXT = 1024  # positions, or fewer where kernels are slow
LEAST_CONTEXT = 32
PROMPT_ROWS = 64
NUM_KV_HEADS = 4  # or as many more as give all threads the same work
EVICTING_FORMAT, EVICTING_OUTPUTS, EVICTING_WIDTH = "F32", 8192, 2048  # a linear that leaves nothing else in cache
NUM_RUNS, NUM_LONG_RUNS = 8, 4


@dataclass(frozen=True, slots=True)
class AttentionTimer:
    """What all timings of attention share; `call_s` is the time of an operator without work, on `num_threads`."""

    pool: WeightPool
    isa: str
    num_threads: int
    call_s: float

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads of which every thread has as many."""
        return -(-NUM_KV_HEADS // self.num_threads) * self.num_threads

    def runner(
        self,
        head_dim: int,
        num_kv_heads: int,
        groups: Sequence[int],
        *,
        is_cold: bool = False,
        context: int = CONTEXT,
    ) -> Runner:
        """Attention with `num_kv_heads` and each of the groups, a layer each; after reading much else if `is_cold`."""
        trial = Trial(self.pool)
        graph = trial.graph
        if is_cold:
            selected = graph.select_rows("selected y", trial.source("y", EVICTING_WIDTH))
            trial.linear("evicting", selected, EVICTING_FORMAT, EVICTING_OUTPUTS)
        rotary = Rotary(tuple(10000.0 ** (-2 * i / head_dim) for i in range(head_dim // 2)), "half")
        kv_width = num_kv_heads * head_dim
        trial.source("x", (max(groups) + 2) * kv_width)
        graph.split("k", "x", 0, kv_width)
        graph.split("v", "x", kv_width, 2 * kv_width)
        for layer, group in enumerate(groups):
            graph.split(f"q{group}", "x", 2 * kv_width, (2 + group) * kv_width)
            heads = (layer, group * num_kv_heads, num_kv_heads, head_dim)
            graph.attention(Attention(f"{group}", f"q{group}", "k", "v", *heads, head_dim**-0.5, rotary))
        return trial.start("x", self.isa, self.num_threads, CONTEXT, context)

    def context_of(self, runner: Runner, limit_s: float) -> int:
        """Positions with keys and values, stored in one step: as many as that takes about `limit_s` for."""
        context = LEAST_CONTEXT
        runner.run(context)
        while context < CONTEXT and 4 * runner.run(context) < limit_s:
            context *= 2
        runner.run(context)
        return context

    def speeds(self, head_dim: int, limit_s: float) -> list[AttentionSpeed]:
        """One for each group."""
        runner = self.runner(head_dim, self.num_kv_heads, GROUPS)
        context = self.context_of(runner, limit_s)
        short, long = (runner.operator_seconds(NUM_RUNS, 1, start) for start in (context // 4 - 1, context - 1))
        rows = min(PROMPT_ROWS, context // 2)
        first, second = (runner.operator_seconds(NUM_LONG_RUNS, rows, start) for start in (0, context - rows))
        found = []
        for group in GROUPS:
            num_channels = group * self.num_kv_heads * head_dim
            decode_s = (long[f"{group}"] - short[f"{group}"]) / (context - context // 4) / num_channels
            prompt_s = (second[f"{group}"] - first[f"{group}"]) / (rows * (context - rows)) / num_channels
            pairs_s = rows * (rows + 1) // 2 * prompt_s
            channel_s = (first[f"{group}"] - self.call_s) / num_channels - pairs_s
            found.append(
                AttentionSpeed(head_dim, group, max(decode_s, 0.0), max(prompt_s, 0.0), max(channel_s, 0.0) / rows)
            )
        return found

    def overlap(self, rate: float, limit_s: float) -> float:
        """How much of the shorter time is hidden when one row's keys and values come from memory."""
        runners = [
            self.runner(HEAD_DIMS[0], self.num_kv_heads, (SHARED_GROUP,), is_cold=cold) for cold in (False, True)
        ]
        context, (warm_s, cold_s) = self._seconds(runners, limit_s)
        head_bytes = _native.kv_head_bytes(self.isa, "", HEAD_DIMS[0])
        read_s = context * self.num_kv_heads * head_bytes / _native.BLOCK_TOKENS / rate
        return min(max((warm_s + read_s - cold_s) / min(warm_s, read_s), 0.0), 1.0)

    def shares(self, limit_s: float) -> tuple[float, float]:
        """How evenly one key/value head, and one more than threads, spread over them: 0 not at all, 1 as many do."""
        if self.num_threads == 1:
            return 1.0, 1.0
        counts = (self.num_kv_heads, 1, self.num_threads + 1)
        _, found = self._seconds([self.runner(HEAD_DIMS[0], count, (SHARED_GROUP,)) for count in counts], limit_s)
        head_s = found[0] / self.num_kv_heads  # where all threads have as many
        alone, rest = (
            self._evenness(count, seconds, head_s) for count, seconds in zip(counts[1:], found[1:], strict=True)
        )
        return alone, rest

    def _evenness(self, num_heads: int, seconds: float, head_s: float) -> float:
        even_s, worst_s = num_heads * head_s, -(-num_heads // self.num_threads) * self.num_threads * head_s
        return min(max((worst_s - seconds) / (worst_s - even_s), 0.0), 1.0)

    def _seconds(self, runners: Sequence[Runner], limit_s: float) -> tuple[int, list[float]]:
        """Positions that all of them have time for, and seconds of one row of each after so many."""
        context = min([self.context_of(runner, limit_s) for runner in runners])
        found = [runner.operator_seconds(NUM_RUNS, 1, context - 1)[f"{SHARED_GROUP}"] for runner in runners]
        return context, [max(seconds - self.call_s, self.call_s) for seconds in found]


def time_attention(timer: AttentionTimer, rate: float, limit_s: float) -> AttentionFigures:
    """All figures of attention, in about `limit_s` seconds; `rate` is the memory's read rate."""
    part_s = limit_s / (len(HEAD_DIMS) + 2)
    speeds = [speed for head_dim in HEAD_DIMS for speed in timer.speeds(head_dim, part_s)]
    alone, rest = timer.shares(part_s)
    return AttentionFigures(
        speeds=tuple(speeds),
        head_share=alone,
        rest_share=rest,
        overlap=timer.overlap(rate, part_s),
        kv_bytes=_native.kv_head_bytes(timer.isa, "", HEAD_DIMS[0]) / (2 * HEAD_DIMS[0] * _native.BLOCK_TOKENS),
    )
