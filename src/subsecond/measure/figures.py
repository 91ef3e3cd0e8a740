"""From samples of a load to the figures of a row: percentiles, rates, spread, goodput, outliers; measures nothing.

Median and mean of a row are the medians over its repeats, so that one disturbed repeat does not move them; the other
percentiles and the extremes are those of all requests together, since one repeat has too few for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median, pstdev
from typing import Any

import numpy as np

from subsecond.core.errors import InputError
from subsecond.measure.load import Sample
from subsecond.measure.target import Trace

PERCENTILES = (10, 25, 75, 90, 95, 99)
OUTLIER_FACTOR = 3.0
MAX_LISTED = 20
NOISE_SPREAD = 0.05
GOALS = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")


def values_of(trace: Trace) -> dict[str, list[float]]:
    """The latencies of one request in milliseconds: one of each but `itl_ms`, which has one for each gap."""
    single = {"ttft_ms": trace.ttft_ms, "tpot_ms": trace.tpot_ms, "e2e_ms": trace.e2e_ms}
    values = {name: [] if value is None else [value] for name, value in single.items()}
    return {**values, "itl_ms": trace.gaps_ms}


def distribution(repeats: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Figures of one latency from its values, one list a repeat; None where there are no values.

    `spread` is the distance of the repeats' medians, (largest - least) / median; None with one repeat.
    """
    filled = [list(values) for values in repeats if values]
    if not filled:
        return None
    together = np.concatenate([np.asarray(values, np.float64) for values in filled])
    medians = [median(values) for values in filled]
    middle = median(medians)
    percentiles = dict(zip(PERCENTILES, np.percentile(together, PERCENTILES), strict=True))
    return {
        "median": round(middle, 4),
        **{f"p{share}": round(float(value), 4) for share, value in percentiles.items()},
        "min": round(float(together.min()), 4),
        "max": round(float(together.max()), 4),
        "mean": round(median(fmean(values) for values in filled), 4),
        "std": round(pstdev(together.tolist()), 4),
        "spread": _spread(medians),
        "repeat_medians": [round(value, 4) for value in medians],
    }


def latencies(samples: Sequence[Sample]) -> dict[str, dict[str, Any] | None]:
    """`ttft_ms`, `tpot_ms`, `itl_ms` and `e2e_ms` of the requests that were answered."""
    found: dict[str, dict[str, Any] | None] = {}
    for name in GOALS:
        repeats = [[v for trace in sample.answered for v in values_of(trace)[name]] for sample in samples]
        found[name] = distribution(repeats)
    return found


def rates(samples: Sequence[Sample]) -> dict[str, float | None]:
    """Rates, each the median over the repeats.

    prefill_tokens_per_s  of a prompt: its tokens that were not cached, by the time to the first token
    decode_tokens_per_s   of an answer: 1 / TPOT
    output_tokens_per_s   of all answers together, by the time from the first request to the last token
    requests_per_s        requests answered by that time
    """

    def over_repeats(of: Callable[[Sample], float | None]) -> float | None:
        values = [value for sample in samples if (value := of(sample)) is not None]
        return round(median(values), 4) if values else None

    return {
        "prefill_tokens_per_s": over_repeats(_prefill_rate),
        "decode_tokens_per_s": over_repeats(
            lambda s: _middle([1e3 / trace.tpot_ms for trace in s.answered if trace.tpot_ms])
        ),
        "output_tokens_per_s": over_repeats(
            lambda s: _per_second(sum(trace.num_new_tokens for trace in s.answered), s.duration_s)
        ),
        "total_tokens_per_s": over_repeats(
            lambda s: _per_second(sum(t.num_prompt_tokens + t.num_new_tokens for t in s.answered), s.duration_s)
        ),
        "requests_per_s": over_repeats(lambda s: _per_second(len(s.answered), s.duration_s)),
    }


def parse_goal(text: str) -> dict[str, float]:
    """Bounds in milliseconds by the names of GOALS, from a text such as "ttft_ms=500,tpot_ms=50"."""
    goal: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if name not in GOALS or not 0 < bound < math.inf or name in goal:
            raise InputError(
                f"{part[:100]!r} is no goal; give some of {', '.join(GOALS)} with milliseconds, each once, "
                "for example ttft_ms=500,tpot_ms=50"
            )
        goal[name] = bound
    return goal


def meets(trace: Trace, goal: Mapping[str, float]) -> bool:
    """Whether a request was answered within every bound; of its gaps the longest counts."""
    if trace.error is not None:
        return False
    values = values_of(trace)
    return all(max(values[name], default=0.0) <= bound for name, bound in goal.items())


def goodput(samples: Sequence[Sample], goal: Mapping[str, float]) -> tuple[float, float]:
    """Requests a second that met the goal, the median over the repeats, and their share of all requests."""
    good = [sum(meets(trace, goal) for trace in sample.traces) for sample in samples]
    rate = median(_per_second(count, s.duration_s) or 0.0 for count, s in zip(good, samples, strict=True))
    return round(rate, 4), round(sum(good) / sum(len(sample.traces) for sample in samples), 6)


def outliers(samples: Sequence[Sample]) -> tuple[int, list[dict[str, Any]]]:
    """Requests beyond three times the median of all in TTFT or total time: how many, and the farthest by name."""
    found: list[dict[str, Any]] = []
    for name in ("ttft_ms", "e2e_ms"):
        values = [
            (value, repeat, index)
            for repeat, sample in enumerate(samples)
            for index, trace in enumerate(sample.traces)
            if trace.error is None
            for value in values_of(trace)[name]
        ]
        if not values:
            continue
        middle = median(value for value, _, _ in values)
        found += [
            {"figure": name, "repeat": repeat, "request": index, "value": round(value, 3), "median": round(middle, 3)}
            for value, repeat, index in values
            if value > OUTLIER_FACTOR * middle
        ]
    found.sort(key=lambda entry: -entry["value"] / entry["median"])
    return len({(entry["repeat"], entry["request"]) for entry in found}), found[:MAX_LISTED]


def noise(figures: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """A sentence where the repeats disagree by more than NOISE_SPREAD, with the figure that does so most."""
    spreads = {name: found["spread"] for name, found in figures.items() if found and found["spread"] is not None}
    if not spreads or max(spreads.values()) <= NOISE_SPREAD:
        return None
    worst = max(spreads, key=lambda name: spreads[name])
    return (
        f"the machine is too noisy for a claim: the medians of the repeats differ by {spreads[worst]:.0%} in {worst}, "
        f"more than {NOISE_SPREAD:.0%}; end other programs, or measure with more --repeat and --requests"
    )


def _spread(medians: Sequence[float]) -> float | None:
    middle = median(medians)
    return round((max(medians) - min(medians)) / middle, 5) if len(medians) > 1 and middle > 0 else None


def _prefill_rate(sample: Sample) -> float | None:
    return _middle(
        [
            (trace.num_prompt_tokens - (trace.num_cached_tokens or 0)) * 1e3 / trace.ttft_ms
            for trace in sample.answered
            if trace.ttft_ms
        ]
    )


def _middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _per_second(count: float, duration_s: float) -> float | None:
    return count / duration_s if count and duration_s > 0 else None
