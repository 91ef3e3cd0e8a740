"""A comparison of servers as text: a table for each load and number of streams, and how ours stands to the others."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.engines import OURS
from bench.rounds import Figure, last_line
from bench.serving.comparison import Outcome
from bench.serving.samples import FIGURES, Sample
from bench.serving.servers import IN_PROCESS

BUSY_SHARE = 0.05
"""A server that keeps more of a processor busy without requests is named."""

Samples = Mapping[str, Sequence[Sample]]


def median_of(samples: Sequence[Sample], figure: str) -> float:
    """Of one of FIGURES over the rounds."""
    return statistics.median(map(FIGURES[figure], samples))


def table(by_server: Samples) -> str:
    """A row for each server with a sample, a column for each figure: its median and range over the rounds."""
    lines = [["", *FIGURES]]
    for name, samples in by_server.items():
        if samples:
            lines.append([name, *(cell(samples, figure) for figure in FIGURES.values())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def cell(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> str:
    """Median and range."""
    found = Figure.of(list(map(figure, samples)))
    return f"{number(found.median)} ({number(found.lowest)}-{number(found.highest)})"


def number(value: float) -> str:
    """Three digits and no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def peers_of(by_server: Samples) -> list[str]:
    """The servers with samples that are not ours."""
    return [name for name, samples in by_server.items() if samples and not name.startswith(OURS)]


def ratios(by_server: Samples) -> Iterator[str]:
    """How each server of ours stands to every peer, and what HTTP costs it."""
    for name, samples in by_server.items():
        if not samples or not name.startswith(OURS) or name.endswith(IN_PROCESS):
            continue
        for peer in peers_of(by_server):
            speed = median_of(samples, "output tok/s") / median_of(by_server[peer], "output tok/s")
            wait = median_of(samples, "TTFT p95 ms") / median_of(by_server[peer], "TTFT p95 ms")
            yield f"{name} / {peer}: {speed:.2f}x output tok/s, {wait:.2f}x TTFT p95"
        engine = by_server.get(name + IN_PROCESS)
        if engine:
            cost = 1 - median_of(samples, "output tok/s") / median_of(engine, "output tok/s")
            yield f"{name}: HTTP costs {cost:.1%} of the engine's output tok/s"


def notes(outcome: Outcome) -> Iterator[str]:
    """What is missing and why, what servers do when idle, how much memory they held."""
    for name, reason in outcome.failures.items():
        yield f"{name}: {last_line(reason)}"
    for name, num_bytes in outcome.peak_rss_bytes.items():
        if num_bytes:
            yield f"{name}: {num_bytes / 1e6:.0f} MB at its peak"
    for (load, num_streams), by_server in outcome.samples.items():
        for name, samples in by_server.items():
            share = max((sample.idle_cpu_share for sample in samples), default=0.0)
            if share > BUSY_SHARE:
                yield f"{name}: keeps {share:.2f} processors busy after {load}, {num_streams} streams (held meanwhile)"


def text_of(outcome: Outcome) -> str:
    """All tables of a model."""
    parts = []
    for (load, num_streams), by_server in outcome.samples.items():
        parts += ["", f"{load}, {num_streams} streams", table(by_server), *ratios(by_server)]
    return "\n".join([*parts, "", *notes(outcome)])


def json_of(outcome: Outcome) -> dict[str, object]:
    """All samples, by load, number of streams and server."""
    samples: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    for (load, num_streams), by_server in outcome.samples.items():
        found = {name: [sample.as_json() for sample in taken] for name, taken in by_server.items()}
        samples.setdefault(load, {})[str(num_streams)] = found
    return {"samples": samples, "peak_rss_bytes": outcome.peak_rss_bytes, "failures": outcome.failures}
