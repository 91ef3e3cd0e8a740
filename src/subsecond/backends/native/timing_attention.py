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

    def stream_share(self, rate: float, limit_s: float) -> float:
        """Share of the memory's read rate that decoding reaches when keys and values come from memory."""
        runner = self.runner(HEAD_DIMS[0], self.num_kv_heads, (SHARED_GROUP,), is_cold=True)
        context = self.context_of(runner, limit_s)
        seconds = runner.operator_seconds(NUM_RUNS, 1, context - 1)[f"{SHARED_GROUP}"] - self.call_s
        head_bytes = _native.kv_head_bytes(self.isa, "", HEAD_DIMS[0])
        num_bytes = context * self.num_kv_heads * head_bytes / _native.BLOCK_TOKENS
        return min(num_bytes / (max(seconds, self.call_s) * rate), 1.0)

    def head_share(self, limit_s: float) -> float:
        """How evenly a single key/value head spreads over the threads: 0 not at all, 1 as evenly as many do."""
        if self.num_threads == 1:
            return 1.0
        runners = [self.runner(HEAD_DIMS[0], count, (SHARED_GROUP,)) for count in (self.num_kv_heads, 1)]
        context = min([self.context_of(runner, limit_s) for runner in runners])
        found = [runner.operator_seconds(NUM_RUNS, 1, context - 1) for runner in runners]
        all_s, alone_s = (seconds[f"{SHARED_GROUP}"] - self.call_s for seconds in found)
        shared_s = all_s / self.num_kv_heads
        return min(max((shared_s * self.num_threads - alone_s) / (shared_s * (self.num_threads - 1)), 0.0), 1.0)


def time_attention(timer: AttentionTimer, rate: float, limit_s: float) -> AttentionFigures:
    """All figures of attention, in about `limit_s` seconds; `rate` is the memory's read rate."""
    part_s = limit_s / (len(HEAD_DIMS) + 2)
    speeds = [speed for head_dim in HEAD_DIMS for speed in timer.speeds(head_dim, part_s)]
    return AttentionFigures(
        speeds=tuple(speeds),
        head_share=timer.head_share(part_s),
        stream_share=timer.stream_share(rate, part_s),
        kv_bytes=_native.kv_head_bytes(timer.isa, "", HEAD_DIMS[0]) / (2 * HEAD_DIMS[0] * _native.BLOCK_TOKENS),
    )
