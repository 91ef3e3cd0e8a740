"""What one sample of a load came to: speed, waiting times and processor time, as JSON can hold it; measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from bench.serving.client import Answer
from bench.serving.percentiles import percentile


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one server.

    wall_s            from the first request to the end of the last answer
    ttft_ms           of every request, from the moment that it was sent
    itl_p50_ms        of the times between tokens that follow each other, of all requests together
    num_events        how many times tokens came, several of them at once counted once
    num_cached_tokens tokens of prompts that the server says it had computed before; None where it does not say
    server_cpu_s      processor time of the server and its children
    client_cpu_s      processor time of the load generator
    idle_cpu_share    processors that the server keeps busy once it has nothing to do
    """

    num_streams: int
    num_requests: int
    num_prompt_tokens: int
    num_new_tokens: int
    num_events: int
    num_cached_tokens: int | None
    wall_s: float
    ttft_ms: tuple[float, ...]
    itl_p50_ms: float
    itl_p99_ms: float
    itl_max_ms: float
    server_cpu_s: float
    client_cpu_s: float
    idle_cpu_share: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens of answers a second, all streams together."""
        return self.num_new_tokens / self.wall_s

    def ttft_percentile(self, share: float) -> float:
        """Over the requests."""
        return percentile(self.ttft_ms, share)

    def as_json(self) -> dict[str, Any]:
        """The fields, and what follows from them."""
        return asdict(self) | {"tokens_per_s": self.tokens_per_s}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sample:
        """Read what `as_json` wrote."""
        known = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**known, "ttft_ms": tuple(known["ttft_ms"])})


FIGURES: Mapping[str, Callable[[Sample], float]] = {
    "output tok/s": lambda sample: sample.tokens_per_s,
    "TTFT p50 ms": lambda sample: sample.ttft_percentile(0.5),
    "TTFT p95 ms": lambda sample: sample.ttft_percentile(0.95),
    "ITL p50 ms": lambda sample: sample.itl_p50_ms,
    "ITL p99 ms": lambda sample: sample.itl_p99_ms,
    "server CPU s": lambda sample: sample.server_cpu_s,
    "client CPU s": lambda sample: sample.client_cpu_s,
}
"""The columns of the table."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Processor time that a sample took, as Sample has it."""

    server_cpu_s: float
    client_cpu_s: float
    idle_cpu_share: float


def sample_of(streams: Sequence[Sequence[Answer]], costs: Costs) -> Sample:
    """Put the answers of all streams together."""
    answers = [answer for stream in streams for answer in stream]
    gaps_ms = [gap for answer in answers for gap in answer.gaps_ms] or [0.0]
    cached = [answer.num_cached_tokens for answer in answers]
    return Sample(
        num_streams=len(streams),
        num_requests=len(answers),
        num_prompt_tokens=sum(answer.num_prompt_tokens for answer in answers),
        num_new_tokens=sum(answer.num_new_tokens for answer in answers),
        num_events=sum(len(answer.stamps_s) for answer in answers),
        num_cached_tokens=None if None in cached else sum(count or 0 for count in cached),
        wall_s=max(answer.end_s for answer in answers) - min(answer.start_s for answer in answers),
        ttft_ms=tuple(round(answer.ttft_ms, 3) for answer in answers),
        itl_p50_ms=percentile(gaps_ms, 0.5),
        itl_p99_ms=percentile(gaps_ms, 0.99),
        itl_max_ms=max(gaps_ms),
        server_cpu_s=costs.server_cpu_s,
        client_cpu_s=costs.client_cpu_s,
        idle_cpu_share=costs.idle_cpu_share,
    )
