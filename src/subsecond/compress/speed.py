"""Times a model and what was made of it side by side, on this machine; judges nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from subsecond.backends import native
from subsecond.backends.native import NativeBackend
from subsecond.backends.protocol import Backend
from subsecond.engine.local import LocalEngine
from subsecond.engine.request import Request, SamplingParams
from subsecond.models.checkpoint import Checkpoint

PROMPT_TOKENS = 256
ANSWER_TOKENS = 32
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Speed:
    """Milliseconds to the first token of a prompt of PROMPT_TOKENS, and a further one; medians, least and most."""

    ttft_ms: tuple[float, float, float]
    tpot_ms: tuple[float, float, float]

    def to_json(self) -> dict[str, dict[str, float]]:
        """Both figures as {median, min, max}."""
        named = {"ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms}
        return {name: dict(zip(("median", "min", "max"), each, strict=True)) for name, each in named.items()}


def time_side_by_side(checkpoints: Mapping[str, Checkpoint], prompt_ids: Sequence[int]) -> dict[str, Speed]:
    """Speed of each checkpoint by name, in rounds that ask one after the other; the first round warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in checkpoints}
    backends: dict[str, NativeBackend] = {}
    try:
        for name, checkpoint in checkpoints.items():
            backends[name] = native.load(checkpoint, context_tokens=2 * (PROMPT_TOKENS + ANSWER_TOKENS))
        for _ in range(ROUNDS + 1):
            for name, backend in backends.items():
                found[name].append(ask(backend, tuple(prompt_ids[:PROMPT_TOKENS])))
    finally:
        for backend in backends.values():
            backend.close()
    return {name: _speed(times[1:]) for name, times in found.items()}


def ask(backend: Backend, prompt_ids: tuple[int, ...]) -> tuple[float, float]:
    """Milliseconds to the first token and between further ones."""
    length = len(prompt_ids) + ANSWER_TOKENS
    engine = LocalEngine(backend, context_length=length, prefix_cache=False)
    try:
        params = SamplingParams(max_tokens=ANSWER_TOKENS, ignore_eos=True)
        start_s = time.perf_counter()
        stamps = [time.perf_counter() for _ in engine.submit(Request(prompt_ids, params, "timed"))]
    finally:
        engine.close()
    return (stamps[0] - start_s) * 1e3, (stamps[-1] - stamps[0]) * 1e3 / (len(stamps) - 1)


def _speed(times: Sequence[tuple[float, float]]) -> Speed:
    first, further = ([each[index] for each in times] for index in (0, 1))
    spread = [(median(each), min(each), max(each)) for each in (first, further)]
    return Speed(spread[0], spread[1])
