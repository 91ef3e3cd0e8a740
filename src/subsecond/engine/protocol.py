"""The one interface of whatever answers a request: the engine on this machine, a wrapper around another, a fake."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from subsecond.engine.request import Request
from subsecond.engine.stream import TokenStream


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts at one moment. Those from `num_steps` on are sums since the engine was made.

    num_free_blocks  blocks that a request could have now, those that only the prefix cache holds included
    num_rows         rows computed
    num_prompt_tokens, num_cached_tokens: tokens of the prompts taken up, and those of them that the prefix cache had
    step_ms          how long the step now being computed has taken so far; None between steps
    is_alive         whether requests can be submitted
    last_error       what the last failed step raised; None if none failed
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_steps: int
    num_rows: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    num_failed_steps: int
    last_error: str | None
    step_ms: float | None = None
    is_alive: bool = True


class Engine(Protocol):
    """Answers requests. All methods may be called from any thread."""

    def submit(self, request: Request) -> TokenStream:
        """Queue a request and return its stream at once; raises InputError if it can never be answered."""

    def cancel(self, request_id: str) -> None:
        """End a request within a step; its stream ends with "cancelled". An unknown or finished one is left alone."""

    def stats(self) -> EngineStats:
        """Return what the engine is doing."""

    def close(self) -> None:
        """Cancel what is live, stop working and wait for it; afterwards submit raises."""
