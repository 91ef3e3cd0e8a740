"""Rows of a benchmark as JSON data: the figures of one workload on one target, and the same in the words of vLLM."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from statistics import median
from typing import Any

from subsecond.measure import figures
from subsecond.measure.arrivals import Closed
from subsecond.measure.load import Sample
from subsecond.measure.rounds import Cell

MAX_ERRORS = 5
OTHERS_SHARE = 0.05  # of the processors' time, from which on others are named
VLLM_NAMES = {"ttft_ms": "ttft_ms", "tpot_ms": "tpot_ms", "itl_ms": "itl_ms", "e2e_ms": "e2el_ms"}


def row_of(cell: Cell, target: str, samples: Sequence[Sample], goal: Mapping[str, float]) -> dict[str, Any]:
    """The row of a cell; `samples` are its repeats on that target."""
    traces = [trace for sample in samples for trace in sample.traces]
    answered = [trace for trace in traces if trace.error is None]
    found = figures.latencies(samples)
    num_outliers, listed = figures.outliers(samples)
    num_events = sum(len(trace.stamps_s) for trace in answered)
    num_new = sum(trace.num_new_tokens for trace in answered)
    cached = [trace.num_cached_tokens for trace in answered if trace.num_cached_tokens is not None]
    row: dict[str, Any] = {
        "workload": cell.workload.name,
        "concurrency": cell.arrivals.concurrency if isinstance(cell.arrivals, Closed) else None,
        "request_rate": None if isinstance(cell.arrivals, Closed) else cell.arrivals.rate,
        "arrivals": cell.arrivals.label,
        "target": target,
        "prompt_tokens": _mean([trace.num_prompt_tokens for trace in traces]),
        "output_tokens": _mean([trace.num_new_tokens for trace in answered]),
        "cached_tokens": _mean(cached),
        **found,
        **figures.rates(samples),
        "peak_memory_bytes": max((s.peak_bytes for s in samples if s.peak_bytes is not None), default=None),
        "resident_memory_bytes": max((s.resident_bytes for s in samples if s.resident_bytes is not None), default=None),
        **_energy(samples),
        "num_repeats": len(samples),
        "num_requests": len(traces),
        "num_failed": len(traces) - len(answered),
        "num_short": sum(trace.num_new_tokens < ask for trace, ask in _asked(cell, samples) if trace.error is None),
        "errors": [
            {"error": error, "count": count}
            for error, count in Counter(t.error for t in traces if t.error is not None).most_common(MAX_ERRORS)
        ],
        "tokens_per_event": round(num_new / num_events, 4) if num_events else None,
        "num_outliers": num_outliers,
        "outliers": listed,
        "other_cpu_share": other_cpu_share(samples),
    }
    if goal:
        row["goal"] = dict(goal)
        row["goodput_requests_per_s"], row["goal_share"] = figures.goodput(samples, goal)
    row["noise"] = figures.noise({name: found[name] for name in ("ttft_ms", "tpot_ms", "e2e_ms")})
    return row


def findings_of(cell: Cell, target: str, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """What is wrong with a target, whatever its speed: failed requests, blocks and requests that it kept."""
    where = {"target": target, "workload": cell.workload.name, "arrivals": cell.arrivals.label}
    found: list[dict[str, Any]] = []
    num_failed = sum(trace.error is not None for sample in samples for trace in sample.traces)
    if num_failed:
        num_all = sum(len(sample.traces) for sample in samples)
        found.append({"kind": "failed_requests", **where, "text": f"{num_failed} of {num_all} requests failed"})
    lost, ratio = sum(s.blocks_lost for s in samples), sum(s.blocks_lost_ratio for s in samples)
    if ratio > 0:
        what = f"{lost} blocks" if lost else f"{ratio:.2%} of the key/value blocks"
        text = f"{what} were not given back after the load: the engine or its prefix cache leaks"
        found.append({"kind": "leak", **where, "num_blocks": lost or None, "block_share": ratio, "text": text})
    left = max(sample.requests_left for sample in samples)
    if left:
        text = f"{left} requests were still open {'' if left == 1 else 'together '}after all had been answered"
        found.append({"kind": "open_requests", **where, "text": text})
    return found


def warnings_of(row: Mapping[str, Any]) -> list[str]:
    """What a reader of a row has to know before trusting it."""
    found = [row["noise"]] if row["noise"] else []
    if (row["other_cpu_share"] or 0) > OTHERS_SHARE:
        found.append(f"other programs took {row['other_cpu_share']:.0%} of the processors meanwhile")
    if row["num_short"]:
        found.append(f"{row['num_short']} answers were shorter than asked for, so their figures are of fewer tokens")
    if row["num_outliers"]:
        found.append(f"{row['num_outliers']} requests took more than {figures.OUTLIER_FACTOR:g} times the median")
    if (row["tokens_per_event"] or 1) > 1.05:
        found.append(
            f"{row['tokens_per_event']:.2f} tokens came in one event on average, so ITL is the time between events"
        )
    return found


def vllm_result(row: Mapping[str, Any], samples: Sequence[Sample], model: str, date: datetime) -> dict[str, Any]:
    """A row with the keys of `vllm bench serve --save-result`, all repeats as one run; of times all requests count."""
    answered = [trace for sample in samples for trace in sample.answered]
    duration_s = sum(sample.duration_s for sample in samples)
    num_input = sum(trace.num_prompt_tokens for trace in answered)
    num_output = sum(trace.num_new_tokens for trace in answered)
    result: dict[str, Any] = {
        "date": date.strftime("%Y%m%d-%H%M%S"),
        "backend": row["target"],
        "endpoint_type": row["target"],
        "label": row["workload"],
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": row["num_requests"],
        "request_rate": "inf" if row["request_rate"] is None else row["request_rate"],
        "burstiness": 1.0,
        "max_concurrency": row["concurrency"],
        "duration": duration_s,
        "completed": len(answered),
        "failed": row["num_failed"],
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": _rate(len(answered), duration_s),
        "request_goodput": row.get("goodput_requests_per_s"),
        "output_throughput": _rate(num_output, duration_s),
        "total_token_throughput": _rate(num_input + num_output, duration_s),
    }
    values: dict[str, list[float]] = {name: [] for name in VLLM_NAMES}
    for trace in answered:
        for name, found in figures.values_of(trace).items():
            values[name] += found
    for name, theirs in VLLM_NAMES.items():
        pooled = figures.distribution([values[name]]) or {}
        for key in ("mean", "median", "std", "p90", "p95", "p99"):
            result[f"{key}_{theirs}"] = pooled.get(key, 0.0)
    return result


def other_cpu_share(samples: Sequence[Sample]) -> float | None:
    """Share of this machine's processors that other programs took; the most of all repeats."""
    num_cores = os.cpu_count() or 1
    shares = [
        s.other_cpu_s / (s.duration_s * num_cores) for s in samples if s.other_cpu_s is not None and s.duration_s > 0
    ]
    return round(min(max(shares), 1.0), 4) if shares else None


def _asked(cell: Cell, samples: Sequence[Sample]) -> list[tuple[Any, int]]:
    """Traces, each with how many tokens it was to have."""
    counts = cell.output_tokens()
    return [(trace, count) for sample in samples for trace, count in zip(sample.traces, counts, strict=True)]


def _energy(samples: Sequence[Sample]) -> dict[str, Any]:
    """Joules for each token of the answers, the median over the repeats, and the method."""
    each = []
    for sample in samples:
        num_tokens = sum(trace.num_new_tokens for trace in sample.answered)
        if sample.energy_j is not None and num_tokens:
            each.append(sample.energy_j / num_tokens)
    return {
        "energy_j_per_token": round(median(each), 6) if each else None,
        "energy_method": samples[0].energy_method,
    }


def _mean(values: Sequence[int]) -> int | None:
    return round(sum(values) / len(values)) if values else None


def _rate(count: float, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
