"""What a benchmark measures and how, declared once for flags, checks and documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate
from subsecond.measure.workload import MAX_TOKENS, WORKLOADS, Workload, workload

if TYPE_CHECKING:
    from subsecond.measure.rounds import Cell

MAX_CONCURRENCY = 4096
DEFAULT_WORKLOADS = ("short-chat", "long-prompt")


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Loads and how often each is measured. Lists may be written with commas."""

    workload: tuple[str, ...] = setting(
        (), f"what is asked: {', '.join(WORKLOADS)}, or all; default {', '.join(DEFAULT_WORKLOADS)}"
    )
    concurrency: tuple[int, ...] = setting(
        (), "clients that each wait for an answer before they ask again; default 1", minimum=1, maximum=MAX_CONCURRENCY
    )
    rate: float | None = setting(
        None,
        "requests a second at random times (Poisson), instead of clients that wait",
        minimum=0,
        is_minimum_excluded=True,
        maximum=10**6,
    )
    arrivals: str | None = setting(
        None, 'file with the time of each request, {"at_s": 0.5} a line, instead of clients that wait'
    )
    requests: int | None = setting(
        None,
        "requests of one repeat; default 8, or 2 for each client or 10 s of a rate where that is more",
        minimum=1,
        maximum=10**6,
    )
    repeat: int = setting(3, "how often each load is measured", minimum=1, maximum=1000)
    warmup: int = setting(2, "requests before the first repeat that do not count", minimum=0, maximum=1000)
    seed: int = setting(0, "seed of prompts and of random times", minimum=0, maximum=2**63 - 1)
    prompt_tokens: int | None = setting(
        None, "tokens of a prompt, instead of the workload's", minimum=1, maximum=MAX_TOKENS
    )
    output_tokens: int | None = setting(
        None, "tokens of an answer, instead of the workload's", minimum=1, maximum=MAX_TOKENS
    )
    shared_tokens: int | None = setting(
        None, "tokens that all prompts begin with, instead of the workload's", minimum=0, maximum=MAX_TOKENS
    )
    goal: str | None = setting(
        None, "bounds of a good answer, for example ttft_ms=500,tpot_ms=50; goodput counts the answers within them"
    )
    goal_share: float = setting(
        0.95, "share of the requests that must meet the goal for it to be held", minimum=0.01, maximum=1
    )
    sweep: bool = setting(False, "double concurrency, or the rate, until the goal is not held any more")
    sweep_limit: int = setting(64, "concurrency, or rate, at which a sweep ends at last", minimum=1, maximum=10**6)
    timeout_s: float = setting(600.0, "seconds after which a request counts as failed", minimum=0.1, maximum=86400)
    watts_per_core: float = setting(
        5.0, "watts that a busy core is assumed to take where no counter of energy can be read", minimum=0, maximum=1000
    )

    def __post_init__(self) -> None:
        validate(self)
        names = [part.strip() for text in self.workload for part in text.split(",")]
        names = list(WORKLOADS) if names == ["all"] else names
        object.__setattr__(self, "workload", tuple(dict.fromkeys(names or DEFAULT_WORKLOADS)))
        for number in self.concurrency:
            if not 1 <= number <= MAX_CONCURRENCY:
                raise InputError(f"a concurrency of {number} is not allowed; give 1 to {MAX_CONCURRENCY}")
        has_concurrency = bool(self.concurrency)
        object.__setattr__(self, "concurrency", tuple(dict.fromkeys(self.concurrency or (1,))))
        if sum((has_concurrency, self.rate is not None, self.arrivals is not None)) > 1:
            raise InputError("--concurrency, --rate and --arrivals exclude each other; give one of them")
        if self.sweep and (self.goal is None or self.arrivals is not None):
            raise InputError(
                "--sweep raises concurrency or --rate until a goal breaks; give a --goal, and no --arrivals"
            )
        self.workloads()
        self.bounds()

    def bounds(self) -> dict[str, float]:
        """The goal, milliseconds by figure; nothing without one."""
        from subsecond.measure.figures import parse_goal  # here because the command's help needs the fields alone

        return {} if self.goal is None else parse_goal(self.goal)

    def workloads(self) -> list[Workload]:
        """The workloads in their sizes."""
        return [
            workload(name).resized(self.prompt_tokens, self.output_tokens, self.shared_tokens) for name in self.workload
        ]

    def cells(self, vocab_size: int) -> list[Cell]:
        """All loads of a benchmark that does not sweep, in order."""
        return [cell for one in self.workloads() for _, cell in self._cells(one, vocab_size, self._levels())]

    def sweep_cells(self, one: Workload, vocab_size: int) -> list[tuple[float, Cell]]:
        """Ever harder loads of one workload, each with its concurrency or rate."""
        first = float(self.rate or self.concurrency[0])
        levels = []
        while first <= self.sweep_limit:
            levels.append(first)
            first *= 2
        if not levels:
            raise InputError(f"--sweep-limit {self.sweep_limit} lies below the first level, {first:g}; raise it")
        return self._cells(one, vocab_size, levels)

    def _levels(self) -> Iterable[float]:
        return map(float, self.concurrency) if self.rate is None else (self.rate,)

    def _cells(self, one: Workload, vocab_size: int, levels: Iterable[float]) -> list[tuple[float, Cell]]:
        from subsecond.measure.arrivals import Closed, poisson, read_arrivals
        from subsecond.measure.rounds import Cell, num_requests_closed, num_requests_open

        if self.arrivals is not None:
            given = read_arrivals(Path(self.arrivals), self.requests)
            return [(1.0, Cell(one, given, len(given.times_s), vocab_size, self.seed))]
        found = []
        for level in levels:
            if self.rate is not None:
                count = self.requests or num_requests_open(level)
                found.append((level, Cell(one, poisson(level, count, self.seed), count, vocab_size, self.seed)))
            else:
                count = self.requests or num_requests_closed(int(level))
                found.append((level, Cell(one, Closed(int(level)), count, vocab_size, self.seed)))
        return found
