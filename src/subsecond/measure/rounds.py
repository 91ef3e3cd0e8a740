"""Runs the cells of a benchmark, targets in turn repeat by repeat, and keeps each sample in a journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from subsecond.measure.arrivals import Arrivals, Closed
from subsecond.measure.energy import EnergyMeter
from subsecond.measure.figures import goodput
from subsecond.measure.journal import Journal
from subsecond.measure.load import Sample, measure_load, run_load
from subsecond.measure.target import Target
from subsecond.measure.workload import Ask, Workload

LEAST_REQUESTS = 8  # of a repeat, so that its median is worth something
REQUESTS_A_CLIENT = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload with its arrivals, and how many requests one repeat has."""

    workload: Workload
    arrivals: Arrivals
    num_requests: int
    vocab_size: int
    seed: int = 0

    @property
    def key(self) -> str:
        """What tells it apart from others of a benchmark."""
        return f"{self.workload.name}, {self.arrivals.label}"

    def asks(self, repeat: str) -> list[Ask]:
        """The requests of a repeat: the same kinds and sizes in each, with other prompts."""
        found = self.workload.asks(self.num_requests, f"{self.seed} {self.arrivals.label} {repeat}", self.vocab_size)
        lengths = () if isinstance(self.arrivals, Closed) else self.arrivals.lengths
        for index, (prompt, output) in enumerate(lengths):
            sized = replace(
                self.workload,
                prompt_tokens=prompt or len(found[index].prompt_ids),
                output_tokens=output or found[index].num_new_tokens,
                shared_tokens=min(self.workload.shared_tokens, (prompt or len(found[index].prompt_ids)) - 1),
                parts=(),
            )
            found[index] = sized.ask(f"{self.workload.name} {self.seed} {repeat} {index}", self.vocab_size)
        return found

    def output_tokens(self) -> list[int]:
        """How many tokens each request of a repeat asks for."""
        return [ask.num_new_tokens for ask in self.asks("0")]

    def max_context_tokens(self) -> int:
        """Most tokens of one request."""
        return max(len(ask.prompt_ids) + ask.num_new_tokens for ask in self.asks("0"))


@dataclass(slots=True)
class Rounds:
    """Measures cells on targets; what the journal has is not measured again.

    on_sample   called after each sample
    """

    targets: Sequence[Target]
    journal: Journal
    meter: EnergyMeter
    num_repeats: int
    num_warmup: int
    timeout_s: float
    on_sample: Callable[[], None] = field(default=lambda: None)
    _prepared: set[str] = field(default_factory=set)

    def num_done(self, cells: Sequence[Cell]) -> int:
        """Samples of these cells that need not be measured any more."""
        return sum(
            self._key(target, cell, repeat) in self.journal
            for cell in cells
            for target in self.targets
            for repeat in range(self.num_repeats)
        )

    def measure(self, cell: Cell, names: Sequence[str] | None = None) -> dict[str, list[Sample]]:
        """The samples of a cell by target, those named or all; who begins changes from repeat to repeat."""
        chosen = [target for target in self.targets if names is None or target.name in names]
        found: dict[str, list[Sample]] = {target.name: [] for target in chosen}
        warmed: set[str] = set()
        for repeat in range(self.num_repeats):
            for target in chosen if repeat % 2 == 0 else reversed(chosen):
                key = self._key(target, cell, repeat)
                if key not in self.journal:
                    self.journal.put(key, self._sample(target, cell, repeat, warmed).to_json())
                    self.on_sample()
                found[target.name].append(Sample.from_json(self.journal[key]))
        return found

    def _sample(self, target: Target, cell: Cell, repeat: int, warmed: set[str]) -> Sample:
        # all of them at first, so that one that is not there is told before others have been measured for long
        for other in self.targets:
            if other.name not in self._prepared:
                other.resume()
                asyncio.run(other.prepare())
                self._prepared.add(other.name)
        for other in self.targets:
            (other.resume if other is target else other.pause)()
        if target.name not in warmed and self.num_warmup:
            asks = replace(cell, num_requests=self.num_warmup, arrivals=Closed(1)).asks("warm-up")
            concurrency = cell.arrivals.concurrency if isinstance(cell.arrivals, Closed) else 1
            asyncio.run(run_load(target, asks, Closed(concurrency), self.timeout_s))
        warmed.add(target.name)
        asks = cell.asks(str(repeat))
        return asyncio.run(measure_load(target, asks, cell.arrivals, self.meter, self.timeout_s))

    def _key(self, target: Target, cell: Cell, repeat: int) -> str:
        return f"{target.name} | {cell.key} | {cell.num_requests} | {repeat}"


@dataclass(frozen=True, slots=True)
class Level:
    """One step of a sweep on one target: how hard it was asked, and the share of requests that met the goal."""

    level: float
    share: float
    is_held: bool


def sweep(
    rounds: Rounds,
    cells: Sequence[tuple[float, Cell]],
    goal: Mapping[str, float],
    least_share: float,
    on_cell: Callable[[Cell, Mapping[str, list[Sample]]], None],
) -> dict[str, list[Level]]:
    """Ask harder and harder, each target until the goal breaks on it; `cells` are given with their level, ascending.

    The goal is held while at least `least_share` of the requests meet it. `on_cell` gets the samples of each cell.
    """
    found: dict[str, list[Level]] = {target.name: [] for target in rounds.targets}
    for level, cell in cells:
        holding = [name for name, levels in found.items() if all(step.is_held for step in levels)]
        if not holding:
            break
        samples = rounds.measure(cell, holding)
        on_cell(cell, samples)
        for name in holding:
            share = goodput(samples[name], goal)[1]
            found[name].append(Level(level, share, share >= least_share))
    return found


def num_requests_closed(concurrency: int) -> int:
    """How many requests a repeat has where nobody says: enough for a median, and some for each client."""
    return max(LEAST_REQUESTS, REQUESTS_A_CLIENT * concurrency)


def num_requests_open(rate: float) -> int:
    """The same where they come at a rate: as many as in about ten seconds."""
    return max(LEAST_REQUESTS, round(10 * rate))
