"""The report of `subsecond bench` as a page: settings, table, distributions, predicted beside measured, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subsecond.cli.bench_profile import add_profile
from subsecond.cli.bench_table import MISSING, entry_text, footer, sweep_text, table_rows
from subsecond.cli.output import size_text
from subsecond.measure.html_page import Page
from subsecond.measure.svg_plot import Bar, Series, bar_plot, line_plot, number_text

LATENCIES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "itl_ms": "between tokens",
    "e2e_ms": "total time",
}
SHARES = ("min", "median", "p90", "p95", "p99", "max")
CURVE = {
    "min": 0.0,
    "p10": 10.0,
    "p25": 25.0,
    "median": 50.0,
    "p75": 75.0,
    "p90": 90.0,
    "p95": 95.0,
    "p99": 99.0,
    "max": 100.0,
}


def bench_page(report: Mapping[str, Any]) -> Page:
    """The whole page."""
    page = Page(f"Benchmark of {report['model']['name']}")
    for entry in report["findings"]:
        page.paragraph(f"Finding: {entry_text(entry)}", is_warning=True)
    for text in report["warnings"]:
        page.paragraph(f"Warning: {text}", is_warning=True)
    for text in footer(report):
        page.paragraph(text)
    page.heading("Figures")
    page.table(table_rows(report["rows"]))
    _add_distributions(page, report["rows"])
    _add_over_level(page, report["rows"])
    _add_comparison(page, report["rows"])
    _add_predictions(page, report)
    if report["profile"] is not None:
        add_profile(page, report["profile"])
    if report["sweeps"]:
        page.heading("Sweeps")
        for sweep in report["sweeps"]:
            page.paragraph(sweep_text(sweep))
    page.heading("Machine, model and settings")
    for name in ("machine", "model", "settings", "targets"):
        page.table([(name, ""), *((key, _plain(value)) for key, value in report[name].items())])
    return page


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['workload']}, {row['arrivals']}, {row['target']}"


def _add_distributions(page: Page, rows: Sequence[Mapping[str, Any]]) -> None:
    page.heading("Distributions")
    for name, label in LATENCIES.items():
        measured = [row for row in rows if row[name] is not None]
        page.paragraph(f"{label[0].upper()}{label[1:]} in milliseconds")
        page.table(
            [
                ("load", *SHARES, "mean", "medians of the repeats"),
                *(
                    (
                        _label(row),
                        *(number_text(row[name][share]) for share in (*SHARES, "mean")),
                        " ".join(number_text(value) for value in row[name]["repeat_medians"]),
                    )
                    for row in measured
                ),
            ]
        )
        series = [
            Series(_label(row), [(row[name][share], place) for share, place in CURVE.items()]) for row in measured
        ]
        page.plot(line_plot(series, f"{label}, ms", "% of them within"))


def _add_over_level(page: Page, rows: Sequence[Mapping[str, Any]]) -> None:
    """Latency and throughput over concurrency or rate, where there are several."""
    kinds = (("concurrency", "clients at a time"), ("request_rate", "requests a second"))
    for kind, x_label in kinds:
        chosen = [row for row in rows if row[kind] is not None]
        if len({row[kind] for row in chosen}) < 2:
            continue
        page.heading(f"Over {x_label}")
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in chosen:
            groups.setdefault(f"{row['workload']}, {row['target']}", []).append(row)
        for name in ("ttft_ms", "tpot_ms"):
            series = [
                Series(f"{group}, {share}", [(row[kind], row[name][share]) for row in found if row[name] is not None])
                for group, found in groups.items()
                for share in ("median", "p99")
            ]
            page.plot(line_plot(series, x_label, f"{LATENCIES[name]}, ms", is_log_x=True))
        series = [
            Series(group, [(row[kind], row["output_tokens_per_s"] or 0.0) for row in found])
            for group, found in groups.items()
        ]
        page.plot(line_plot(series, x_label, "tokens of answers a second", is_log_x=True))


def _add_comparison(page: Page, rows: Sequence[Mapping[str, Any]]) -> None:
    page.heading("Throughput")
    bars = [Bar(_label(row), row["output_tokens_per_s"]) for row in rows if row["output_tokens_per_s"] is not None]
    page.plot(bar_plot(bars, "tokens of answers a second"))


def _add_predictions(page: Page, report: Mapping[str, Any]) -> None:
    page.heading("Predicted beside measured")
    rows = [row for row in report["rows"] if row.get("predicted")]
    if not rows:
        page.paragraph(report["prediction"])
        return
    lines = [("load", "figure", "predicted", "measured", "error")]
    for row in rows:
        found = row["predicted"]
        for name, label in (("ttft", "TTFT, ms"), ("tpot", "TPOT, ms")):
            if found[f"{name}_ms"] is not None and row[f"{name}_ms"] is not None:
                values = (number_text(found[f"{name}_ms"]), number_text(row[f"{name}_ms"]["median"]))
                lines.append((_label(row), label, *values, _percent(found[f"{name}_error"])))
        measured = row.get("model_memory_bytes")
        memory = (size_text(found["memory_bytes"]), MISSING if measured is None else size_text(measured))
        lines.append((_label(row), "memory of the model", *memory, _percent(found["memory_error"])))
    page.table(lines)
    for text in report["assumptions"]:
        page.paragraph(f"Assumed: {text}")


def _percent(error: float | None) -> str:
    return MISSING if error is None else f"{error:+.1%}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return MISSING if value is None else str(value)
