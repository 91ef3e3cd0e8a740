"""What a benchmark measures: something that answers prompts, and the trace that one answer leaves; measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from subsecond.core.errors import SubsecondError


class TargetError(SubsecondError):
    """A target is not there, or answered something that is no answer."""


@dataclass(slots=True)
class Trace:
    """One answer as it came; times are those of time.perf_counter().

    start_s            when the request was sent, or was to be sent where arrivals are given
    stamps_s           when tokens came: one entry for each event, which may bring several tokens
    num_new_tokens     as the target counts them
    num_cached_tokens  of the prompt, what was not computed anew; None where the target does not say
    error              why the request failed; None where it was answered
    """

    start_s: float = 0.0
    stamps_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_cached_tokens: int | None = None
    error: str | None = None

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds from the request to the first token."""
        return (self.stamps_s[0] - self.start_s) * 1e3 if self.stamps_s else None

    @property
    def e2e_ms(self) -> float | None:
        """Milliseconds from the request to the last token."""
        return (self.stamps_s[-1] - self.start_s) * 1e3 if self.stamps_s else None

    @property
    def tpot_ms(self) -> float | None:
        """Mean milliseconds of a token after the first; None with fewer than two."""
        if self.num_new_tokens < 2 or len(self.stamps_s) < 2:
            return None
        return (self.stamps_s[-1] - self.stamps_s[0]) * 1e3 / (self.num_new_tokens - 1)

    @property
    def gaps_ms(self) -> list[float]:
        """Milliseconds from one event to the next."""
        return [(after - before) * 1e3 for before, after in pairwise(self.stamps_s)]

    def to_json(self, origin_s: float) -> dict[str, Any]:
        """JSON data, with times in milliseconds from `origin_s`."""
        return {
            "start_ms": round((self.start_s - origin_s) * 1e3, 4),
            "stamps_ms": [round((stamp - origin_s) * 1e3, 4) for stamp in self.stamps_s],
            "tokens": [self.num_prompt_tokens, self.num_new_tokens, self.num_cached_tokens],
            "error": self.error,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Trace:
        """What `to_json` wrote, with the origin at 0."""
        prompt, new, cached = content["tokens"]
        stamps_s = [stamp / 1e3 for stamp in content["stamps_ms"]]
        return cls(content["start_ms"] / 1e3, stamps_s, prompt, new, cached, content["error"])


@dataclass(frozen=True, slots=True)
class Reading:
    """What a target holds at one moment; None for what it does not say.

    cpu_s            processor time so far
    resident_bytes   memory in use; peak_bytes the most since `reset_peak`
    num_open         requests that run or wait
    num_blocks, num_free_blocks: key/value blocks; those that only the prefix cache holds count as free
    kv_usage_ratio   share of the key/value blocks in use, of a target that does not give their number
    """

    cpu_s: float | None = None
    resident_bytes: int | None = None
    peak_bytes: int | None = None
    num_open: int | None = None
    num_blocks: int | None = None
    num_free_blocks: int | None = None
    kv_usage_ratio: float | None = None


class Target(Protocol):
    """Something that answers prompts. `name` is its own among those that are measured together.

    `is_local` says whether it computes on this machine, so that this machine's energy and load are its own;
    `is_in_process` whether it does so in this process.
    """

    name: str
    is_local: bool
    is_in_process: bool

    @property
    def description(self) -> Mapping[str, Any]:
        """What it is, as JSON data that stands beside its figures: kind, address, version, form of the prompts."""

    async def prepare(self) -> None:
        """Make it ready to be asked, once before its first load; TargetError if it cannot be."""

    async def ask(self, prompt_ids: tuple[int, ...], num_new_tokens: int) -> Trace:
        """Send one prompt and read the answer to its end; whatever fails is the trace's `error` or an exception."""

    async def reading(self) -> Reading:
        """What it holds now."""

    def reset_peak(self) -> None:
        """Begin to count peak memory anew, where that can be done."""

    def pause(self) -> None:
        """Keep it from computing until `resume`, while others have their turn."""

    def resume(self) -> None:
        """Let it go on."""
