"""Runs loads on several servers of one model in turn: all are loaded, one computes, the others are held meanwhile."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.rounds import last_line, measure
from bench.serving.commands import Capacity
from bench.serving.loads import Load, prompts_of_streams
from bench.serving.samples import Sample
from bench.serving.servers import Server, open_server
from bench.timing import PeerError

WARMUP_NEW_TOKENS = 4

Point = tuple[str, int]
"""The name of a load and a number of streams."""


@dataclass(slots=True)
class Outcome:
    """Samples of one model by load, number of streams and server; what is missing has a reason by the same names."""

    samples: dict[Point, dict[str, list[Sample]]] = field(default_factory=dict)
    peak_rss_bytes: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def drop_empty(self) -> None:
        """Forget the points and servers of which no sample was taken."""
        found = {point: {name: kept for name, kept in by.items() if kept} for point, by in self.samples.items()}
        self.samples = {point: by for point, by in found.items() if by}


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Let a server compute for the length of a block."""
    server.resume()
    try:
        yield server
    finally:
        server.pause()


def warm_up(server: Server, loads: Sequence[Load], num_streams: int) -> None:
    """As many streams at once as there will be; for loads with a known beginning each of them reads it."""
    for load in loads:
        prompts = load.prompts(num_streams, "warm-up")
        server.measure([[prompt] for prompt in prompts], min(load.num_new_tokens, WARMUP_NEW_TOKENS))


def start_all(
    names: Sequence[str], model: Path, capacity: Capacity, loads: Sequence[Load], stack: ExitStack, outcome: Outcome
) -> dict[str, Server]:
    """The servers that can be had, warm and held; the others become failures."""
    found = {}
    for name in names:
        print(f"starting {name} ...", file=sys.stderr, flush=True)
        try:
            server = open_server(name, model, capacity)
            stack.callback(server.stop)
            server.start()
            with running(server):
                warm_up(server, loads, capacity.num_streams)
        except PeerError as error:
            outcome.failures[name] = str(error)
            print(f"{name} is left out: {last_line(str(error))}", file=sys.stderr, flush=True)
        else:
            found[name] = server
    return found


def compare(
    names: Sequence[str],
    model: Path,
    loads: Sequence[Load],
    streams: Sequence[int],
    *,
    threads: int,
    rounds: int,
    each: int | None = None,
) -> Outcome:
    """Measure every load at every number of streams on every server, round by round; `each` stream's requests."""
    outcome = Outcome()
    capacity = Capacity(threads, max(streams), max(load.num_context_tokens for load in loads))
    with ExitStack() as stack:
        servers = start_all(names, model, capacity, loads, stack, outcome)
        samplers: dict[tuple[str, int, str], Callable[[], float]] = {}
        for load, num_streams in itertools.product(loads, streams):
            by_server = outcome.samples.setdefault((load.name, num_streams), {})
            for name, server in servers.items():
                samples = by_server.setdefault(name, [])
                samplers[load.name, num_streams, name] = sampler(server, load, num_streams, each, samples)
        try:
            _, failures = measure(samplers, rounds)
        except KeyboardInterrupt:
            failures = {("load", 0, "interrupted"): "some samples were not taken"}
        outcome.drop_empty()
        outcome.failures |= {" ".join(map(str, key)): reason for key, reason in failures.items()}
        outcome.peak_rss_bytes = {name: server.peak_rss_bytes for name, server in servers.items()}
    return outcome


def sampler(
    server: Server, load: Load, num_streams: int, each: int | None, samples: list[Sample]
) -> Callable[[], float]:
    """Takes one sample a call and keeps it; tokens a second. All servers get the same prompts in a round."""
    turns = itertools.count()

    def sample() -> float:
        prompts = prompts_of_streams(load, num_streams, f"round {next(turns)}", each)
        with running(server):
            samples.append(server.measure(prompts, load.num_new_tokens))
        return samples[-1].tokens_per_s

    return sample
