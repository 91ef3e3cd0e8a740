"""The report of a compression as a page: size, speed and quality, what was done to which part and why, what was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subsecond.measure.html_page import Page
from subsecond.measure.svg_plot import Bar, bar_plot, number_text

_ERROR = "relative_error"
_FIGURES = ("perplexity", "perplexity_reference", "kl_mean", "kl_p99", "top1_agreement")


def report_page(report: Mapping[str, Any]) -> Page:
    """The page of a report as `Work.run` gives it."""
    page = Page(f"{report['model']}, made smaller by {report['recipe']['name']}")
    _summary(page, report)
    _quality(page, report["quality"])
    for index, (stage, done) in enumerate(zip(report["recipe"]["stages"], report["stages"], strict=True)):
        _stage(page, index, stage, done)
    _costs(page, report)
    page.heading("How it was made")
    source, calibration = report["source"], report["calibration"]
    page.table(
        [
            ["", ""],
            ["source", f"{source['name']}, sha256 {source['sha256']}"],
            ["calibration", f"{calibration['num_windows']} windows, {calibration['source']}"],
            *([name, str(value)] for name, value in report["machine"].items()),
        ]
    )
    return page


def summary_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Size, speed and quality before and after, as rows of text."""
    sizes, bits, speed = report["weight_bytes"], report["bits_per_weight"], report["speed"]
    rows = [
        ["weights, MB", *(f"{sizes[name] / 1e6:.1f}" for name in ("original", "result"))],
        ["bits a weight of linears", *(f"{bits[name]:.2f}" for name in ("original", "result"))],
        *_speed_rows(speed),
    ]
    quality = report["quality"]
    if quality is not None:
        perplexities = [quality[name]["value"] for name in ("perplexity_reference", "perplexity")]
        rows.append(["perplexity", *(number_text(each) for each in perplexities)])
        rows.append(["mean KL, nats", "0", _with_interval(quality["kl_mean"])])
        rows.append(["top-1 agreement", "1", _with_interval(quality["top1_agreement"])])
    return rows


def _speed_rows(speed: Mapping[str, Any] | None) -> list[list[str]]:
    if speed is None:
        return []
    names = {"ttft_ms": "time to first token, ms", "tpot_ms": "time per further token, ms"}
    return [
        [label, *(f"{number_text(each[key]['median'])} ({number_text(each[key]['min'])} to "
                  f"{number_text(each[key]['max'])})" for each in (speed["original"], speed["result"]))]
        for key, label in names.items()
    ]  # fmt: skip


def _with_interval(figure: Mapping[str, float]) -> str:
    return f"{number_text(figure['value'])} ({number_text(figure['low'])} to {number_text(figure['high'])})"


def _summary(page: Page, report: Mapping[str, Any]) -> None:
    page.table([["", "before", "after"], *summary_rows(report)])
    page.paragraph(
        "Times are medians of runs of both models in turn on this machine, with least and most; quality is that of the "
        "result through the kernels that serve it, against the fp32 graph of the original weights, with 95 % intervals."
    )


def _quality(page: Page, quality: Mapping[str, Any] | None) -> None:
    page.heading("Quality")
    if quality is None:
        page.paragraph("Quality and speed were not measured (--eval-windows 0).", is_warning=True)
        return
    for finding in quality["findings"]:
        page.paragraph(finding, is_warning=True)
    rows = [[name, _with_interval(quality[name])] for name in _FIGURES if quality.get(name)]
    page.table([["figure", "value (95 % interval)"], *rows])
    for kind, slices in quality["slices"].items():
        if kind != "text":
            page.paragraph(f"Mean KL by {kind}: where did quality go?")
            bars = [
                Bar(label, each["kl_mean"]["value"], each["kl_mean"]["low"], each["kl_mean"]["high"])
                for label, each in slices.items()
            ]
            page.plot(bar_plot(bars, "nats"))


def _stage(page: Page, index: int, stage: Mapping[str, Any], done: Mapping[str, Any]) -> None:
    page.heading(f"Stage {index + 1}: {stage['kind']}")
    page.table([["setting", "value"], *([name, str(value)] for name, value in stage.items() if name != "kind")])
    decisions: Sequence[Mapping[str, Any]] = done["decisions"]
    bars = [Bar(each["part"], each["figures"][_ERROR]) for each in decisions if _ERROR in each["figures"]]
    if bars:
        page.paragraph("Relative error of the outputs of each part on the calibration text")
        page.plot(bar_plot(bars, "", has_one_color=True))
    names = list(dict.fromkeys(name for each in decisions for name in each["figures"]))
    rows = [
        [each["part"], each["what"], each["why"],
         *(number_text(each["figures"][name]) if name in each["figures"] else "" for name in names)]
        for each in decisions
    ]  # fmt: skip
    page.table([["part", "what was done", "why", *(name.replace("_", " ") for name in names)], *rows])
    if done["rejections"]:
        page.paragraph("Looked at and not taken:")
        page.table([["option", "reason"], *([each["option"], each["reason"]] for each in done["rejections"])])


def _costs(page: Page, report: Mapping[str, Any]) -> None:
    page.heading("What it took")
    plan, measured = report["plan"], report["phase_seconds"]
    rows = [
        [name, number_text(seconds), number_text(measured[name]) if name in measured else "done before"]
        for name, seconds in plan["phases"].items()
    ]
    page.table([["phase", "predicted, s", "taken, s"], *rows])
    peak = report["peak_memory_bytes"]
    taken = f"{peak / 1e9:.2f} GB" if peak else "not known"
    page.paragraph(f"Most memory: predicted {plan['peak_bytes'] / 1e9:.2f} GB, taken {taken}.")
