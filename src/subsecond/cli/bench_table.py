"""The report of `subsecond bench` as text for people: a table with units, what is wrong, and where the quality is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subsecond.cli.bench_profile import profile_text
from subsecond.cli.output import size_text, table

MISSING = "-"
HEADING = (
    "workload",
    "arrivals",
    "target",
    "tokens in/out",
    "TTFT ms",
    "p99",
    "TPOT ms",
    "p99",
    "total ms",
    "prefill tok/s",
    "decode tok/s",
    "output tok/s",
    "peak",
    "J/token",
    "failed",
)


def report_text(report: Mapping[str, Any]) -> str:
    """Everything in lines."""
    lines = [table(table_rows(report["rows"])), "", *footer(report)]
    if report["profile"] is not None:
        lines += ["", profile_text(report["profile"]), ""]
    lines += [f"FINDING  {entry_text(entry)}" for entry in report["findings"]]
    lines += [f"WARNING  {text}" for text in report["warnings"]]
    return "\n".join(lines)


def table_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Heading and one line for each row; medians unless the heading says otherwise."""
    return [HEADING, *(_cells(row) for row in rows)]


def footer(report: Mapping[str, Any]) -> list[str]:
    """What the figures are worth: machine, quality, spread, energy, prediction, cold start, sweeps."""
    machine, model = report["machine"], report["model"]
    kernels = f"{machine['isa']} kernels" if machine["isa"] else "kernels not known"
    lines = [
        f"{machine['processor']}, {machine['num_usable_cores']} cores; {kernels}; {model['name']} as "
        f"{model.get('variant', 'the server has it')}; its quality: {report['quality_command']}",
        f"medians of {report['settings']['repeat']} repeats{_spread_text(report['rows'])}",
    ]
    lines += [f"energy: {text}" for text in dict.fromkeys(row["energy_method"] for row in report["rows"])]
    if report["cold_start"] is not None:
        cold = report["cold_start"]
        lines.append(
            f"cold start: {cold['first_token_ms']:.0f} ms to the first token, {cold['end_ms']:.0f} ms to the end"
        )
    goals = [row for row in report["rows"] if "goal" in row]
    lines += [
        f"goodput of {row['workload']}, {row['arrivals']}, {row['target']}: "
        f"{row['goodput_requests_per_s']:.3g} requests/s, {row['goal_share']:.0%} of them within "
        f"{_goal_text(row['goal'])}"
        for row in goals
    ]
    lines += [sweep_text(sweep) for sweep in report["sweeps"]]
    predicted = [row for row in report["rows"] if row.get("predicted")]
    lines += [
        f"predicted {row['workload']}, {row['arrivals']}: {prediction_text(row['predicted'])}" for row in predicted
    ]
    if not predicted:
        lines.append(report["prediction"])
    return lines


def entry_text(entry: Mapping[str, Any]) -> str:
    """A finding with its place."""
    where = [entry[name] for name in ("workload", "arrivals", "target") if name in entry]
    return ": ".join([", ".join(where), entry["text"]] if where else [entry["text"]])


def sweep_text(sweep: Mapping[str, Any]) -> str:
    """What a sweep found."""
    name = "clients" if sweep["raised"] == "concurrency" else "requests/s"
    held, broken = sweep["last_held"], sweep["first_broken"]
    end = "its limit" if broken is None else f"it broke at {broken:g}"
    found = "was never held" if held is None else f"was held up to {held:g} {name}"
    return f"sweep of {sweep['workload']}, {sweep['target']}: the goal {found}; {end}"


def prediction_text(predicted: Mapping[str, Any]) -> str:
    """Predicted figures, each with its error."""
    parts = []
    for name, label in (("ttft", "TTFT"), ("tpot", "TPOT")):
        value, error = predicted[f"{name}_ms"], predicted[f"{name}_error"]
        if value is not None:
            parts.append(f"{label} {value:.4g} ms{_error_text(error)}")
    parts.append(f"memory {size_text(predicted['memory_bytes'])}{_error_text(predicted['memory_error'])}")
    return ", ".join(parts)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["workload"],
        row["arrivals"],
        row["target"],
        f"{_number(row['prompt_tokens'])}/{_number(row['output_tokens'])}",
        _figure(row["ttft_ms"], "median"),
        _figure(row["ttft_ms"], "p99"),
        _figure(row["tpot_ms"], "median"),
        _figure(row["tpot_ms"], "p99"),
        _figure(row["e2e_ms"], "median"),
        _number(row["prefill_tokens_per_s"]),
        _number(row["decode_tokens_per_s"]),
        _number(row["output_tokens_per_s"]),
        MISSING if row["peak_memory_bytes"] is None else size_text(row["peak_memory_bytes"]),
        _number(row["energy_j_per_token"]),
        str(row["num_failed"]),
    )


def _figure(figures: Mapping[str, Any] | None, name: str) -> str:
    return MISSING if figures is None else _number(figures[name])


def _number(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 or isinstance(value, int) else f"{value:.3g}"


def _error_text(error: float | None) -> str:
    return "" if error is None else f" ({abs(error):.0%} {'above' if error > 0 else 'below'} measured)"


def _goal_text(goal: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={bound:g}" for name, bound in goal.items())


def _spread_text(rows: Sequence[Mapping[str, Any]]) -> str:
    spreads = [
        row[name]["spread"]
        for row in rows
        for name in ("ttft_ms", "tpot_ms", "e2e_ms")
        if row[name] is not None and row[name]["spread"] is not None
    ]
    return f", which differ by at most {max(spreads):.1%}" if spreads else ""
