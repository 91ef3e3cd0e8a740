"""One timed generation in a process of its own: its workload, its command line, and what it reports as JSON.

Needs nothing but the standard library, because the programs of the peers import it in environments of their own. Run:

    python -m bench.generation MODEL PROMPT_TOKENS NEW_TOKENS [THREADS] [SEQUENCES]

and the same for bench.peers.NAME.generation, each in the environment of its engine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

LEAD_TOKENS = 96
"""What a sequence may have answered before the last prompt is read; it is asked for that many more."""

WARMUP_NEW_TOKENS = 5
FIRST_ID, NUM_IDS = 1000, 16000  # ordinary tokens of every vocabulary


class PeerError(RuntimeError):
    """An engine is missing or failed, or printed something that does not fit what was asked."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts of one length, answered together with as many tokens each."""

    num_prompt_tokens: int
    num_new_tokens: int
    num_sequences: int = 1

    @property
    def num_context_tokens(self) -> int:
        """Tokens of one sequence, with those that an engine may answer early."""
        return self.num_prompt_tokens + self.num_new_tokens + LEAD_TOKENS

    def warmup(self) -> Workload:
        """As many rows of prompts and as many sequences a step, so the same kernels are made ready, but shorter."""
        num_prompt_tokens = max(1, self.num_prompt_tokens // self.num_sequences)
        return Workload(num_prompt_tokens, min(self.num_new_tokens, WARMUP_NEW_TOKENS), self.num_sequences)

    def prompts(self, seed: int = 0) -> list[list[int]]:
        """Prompts without meaning, since speed does not depend on it. No two begin alike, nor those of two seeds."""
        starts = [101 * sequence + 7919 * seed for sequence in range(self.num_sequences)]
        return [[FIRST_ID + (start + 37 * i) % NUM_IDS for i in range(self.num_prompt_tokens)] for start in starts]


@dataclass(frozen=True, slots=True)
class Timing:
    """What one process measured.

    load_ms         model and engine, imports and the start of the process left out
    prefill_ms      from the request until every sequence has its first token
    step_ms         from there, one value for each further token of all sequences
    peak_rss_bytes  most memory that the process held
    system_info     what the engine says of the kernels it runs, as far as it says anything
    """

    load_ms: float
    prefill_ms: float
    step_ms: tuple[float, ...]
    num_prompt_tokens: int
    num_new_tokens: int
    num_sequences: int
    peak_rss_bytes: int
    version: str
    system_info: str

    @classmethod
    def from_json(cls, text: str) -> Timing:
        """Read the last line that a program printed, as engines may print before it; ValueError if it is not one."""
        line = (text.strip().splitlines() or [""])[-1]
        values = json.loads(line)
        if not isinstance(values, dict) or not all(field.name in values for field in fields(cls)):
            raise ValueError(f"not a timing: {line[:200]}")
        known = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**known, "step_ms": tuple(known["step_ms"])})

    @property
    def prompt_tokens_per_s(self) -> float:
        """Of all sequences together."""
        return self.num_prompt_tokens * self.num_sequences / self.prefill_ms * 1e3

    @property
    def decode_tokens_per_s(self) -> float:
        """Of all sequences together, over the whole generation."""
        return self.num_sequences * len(self.step_ms) / sum(self.step_ms) * 1e3


class Program(Protocol):
    """An engine with a loaded model."""

    version: str
    system_info: str

    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> list[float]:
        """Answer prompts together; time.perf_counter() when all sequences had a first token, a second and so on."""


def parse_arguments(*extra: tuple[str, dict[str, Any]]) -> tuple[argparse.Namespace, Workload]:
    """The command line that all programs share, with the `extra` flags of one."""
    parser = argparse.ArgumentParser(description="Time one generation in this process and print it as JSON.")
    parser.add_argument("model")
    parser.add_argument("prompt_tokens", type=int)
    parser.add_argument("new_tokens", type=int)
    parser.add_argument("threads", type=int, nargs="?", default=len(os.sched_getaffinity(0)))
    parser.add_argument("sequences", type=int, nargs="?", default=1)
    for flag, how in extra:
        parser.add_argument(flag, **how)
    options = parser.parse_args()
    return options, Workload(options.prompt_tokens, options.new_tokens, options.sequences)


def run(open_program: Callable[[argparse.Namespace, Workload], Program], *extra: tuple[str, dict[str, Any]]) -> None:
    """The whole of a program: load, warm up with other prompts of the same shape, time, print."""
    options, workload = parse_arguments(*extra)
    start = time.perf_counter()
    program = open_program(options, workload)
    load_ms = (time.perf_counter() - start) * 1e3
    warmup = workload.warmup()
    program.generate(warmup.prompts(seed=1), warmup.num_new_tokens)
    prompts = workload.prompts()
    start = time.perf_counter()
    stamps = program.generate(prompts, workload.num_new_tokens)
    assert len(stamps) == workload.num_new_tokens, f"{len(stamps)} stamps for {workload.num_new_tokens} tokens"
    times_ms = [(after - before) * 1e3 for before, after in zip([start, *stamps[:-1]], stamps, strict=True)]
    timing = Timing(
        load_ms=load_ms,
        prefill_ms=times_ms[0],
        step_ms=tuple(times_ms[1:]),
        num_prompt_tokens=workload.num_prompt_tokens,
        num_new_tokens=workload.num_new_tokens,
        num_sequences=workload.num_sequences,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        version=program.version,
        system_info=program.system_info,
    )
    print(json.dumps(asdict(timing)), flush=True)


def stamp_rounds(step: Callable[[], Iterable[int]], num_rounds: int) -> list[float]:
    """Step until every sequence has `num_rounds` tokens; `step` returns how many each has. When each round was full."""
    stamps: list[float] = []
    while len(stamps) < num_rounds:
        num_full = min(min(step()), num_rounds)
        stamps += [time.perf_counter()] * (num_full - len(stamps))
    return stamps
