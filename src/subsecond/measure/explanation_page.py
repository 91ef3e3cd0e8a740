"""The report of an explanation as one HTML page: bars, tables, shaded tokens; computes no figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subsecond.measure.html_page import Page
from subsecond.measure.svg_plot import Bar, bar_plot, number_text, stacked_plot

PARTS = ("tokenize", "queue", "prefill", "decode", "sample", "detokenize", "other")


def page_of(report: Mapping[str, Any]) -> Page:
    """The sections that the report has."""
    page = Page(f"Explanation of {report['model']}")
    machine = report["machine"]
    page.paragraph(
        f"Served as {report['variant']} with {machine['isa']} kernels on {machine['processor']}, against "
        f"{report['reference']} in float32, {machine['measured_at']}."
    )
    for finding in report["findings"]:
        page.paragraph(finding, is_warning=True)
    writers = {"layers": _layers, "flips": _flips, "attribution": _attribution, "time": _time}
    for section, write in writers.items():
        if report[section] is not None:
            write(page, report)
    return page


def _layers(page: Page, report: Mapping[str, Any]) -> None:
    page.heading("Where the damage arises")
    page.paragraph(
        "Relative error of the hidden state after each part of each layer: the length of the difference to the "
        "reference over the length of the reference, mean over positions."
    )
    layers = report["layers"]
    page.plot(bar_plot([Bar(layer["name"], layer["relative_error"]) for layer in layers], "", has_one_color=True))
    page.paragraph("The parts that add most:")
    worst = sorted(layers, key=lambda layer: -layer["added_error"])[:10]
    rows = [["part", "relative error", "cosine distance", "added error"]]
    for layer in worst:
        figures = (layer["relative_error"], layer["cosine_distance"], layer["added_error"])
        rows.append([layer["name"], *(f"{figure:.3g}" for figure in figures)])
    page.table(rows)


def _flips(page: Page, report: Mapping[str, Any]) -> None:
    count, scored = report["num_flips"], report["num_scored_tokens"]
    page.heading("Tokens that flipped")
    page.paragraph(
        f"After {count} of {scored} positions of the text ({count / scored:.2%}) another token is the most likely one. "
        "First those of which the reference was surest."
    )
    rows = [["after", "in the text", "reference", "served"]]
    for flip in report["flips"]:
        rows.append([flip["context"][-120:], repr(flip["next"]), _tops(flip["reference"]), _tops(flip["candidate"])])
    page.table(rows)
    page.heading("Answers side by side")
    rows = [["prompt", "reference", "served", "first difference"]]
    for answer in report["answers"]:
        rows.append([answer["prompt"], answer["reference"], answer["candidate"], _difference(answer)])
    page.table(rows)


def _difference(answer: Mapping[str, Any]) -> str:
    if answer["first_difference"] is None:
        return "none"
    return (
        f"token {answer['first_difference']}: {answer['reference_token']!r} ({answer['reference_probability']:.1%} by "
        f"the reference), {answer['candidate_token']!r} ({answer['candidate_probability']:.1%})"
    )


def _attribution(page: Page, report: Mapping[str, Any]) -> None:
    found = report["attribution"]
    page.heading("What the answer rests on")
    page.paragraph(
        "Tokens of the prompt by gradient x input on the reference: red speaks for the answer, blue against it."
    )
    largest = max((abs(token["gradient_x_input"]) for token in found["tokens"]), default=0.0) or 1.0
    page.tokens(
        [
            (token["text"], token["gradient_x_input"] / largest, number_text(token["gradient_x_input"]))
            for token in found["tokens"]
        ]
    )
    page.paragraph("The answer:")
    page.code(found["answer"])
    page.paragraph(
        f"How much the answer's log-probability falls when one token is replaced by {found['neutral_token']!r}:"
    )
    rows = [["token", "served", "reference"]]
    rows += [[repr(i["text"]), f"{i['served']:+.3f}", f"{i['reference']:+.3f}"] for i in found["occluded"]]
    page.table(rows)
    correlation = found["rank_correlation"]
    text = "not defined" if correlation is None else f"{correlation:.3f}"
    page.paragraph(
        f"Same evidence: rank correlation {text}; {found['top_overlap']:.0%} of the {found['num_compared']} most "
        "important tokens are the same."
    )


def _time(page: Page, report: Mapping[str, Any]) -> None:
    budget = report["time"]
    page.heading("Where the time goes")
    page.paragraph(
        f"One request with {budget['num_prompt_tokens']} prompt tokens and {budget['num_new_tokens']} new ones: "
        f"{budget['total_ms']:.1f} ms, TTFT {budget['ttft_ms']:.1f} ms."
    )
    page.plot(stacked_plot([(part, budget[f"{part}_ms"]) for part in PARTS], "ms"))
    if budget["what_if_error"] is not None:
        page.paragraph(f"What if: {budget['what_if_error']}.")
        return
    page.paragraph("What if, predicted by the cost model:")
    rows = [["change", "TTFT ms", "TPOT ms", "total ms", ""]]
    for guess in budget["what_if"]:
        names = ("ttft_ms", "tpot_ms", "total_ms")
        figures = ["-" if guess[name] is None else f"{guess[name]:.2f}" for name in names]
        note = "; ".join(filter(None, ["scaled beyond what was measured" if guess["is_scaled"] else "", guess["note"]]))
        rows.append([guess["change"], *figures, note])
    page.table(rows)


def _tops(tokens: list[dict[str, Any]]) -> str:
    return ", ".join(f"{item['token']!r} {item['probability']:.1%}" for item in tokens)
