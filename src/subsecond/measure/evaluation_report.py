"""The report of an evaluation as a page: figures, slices with intervals, divergence by window, and the worst tokens."""

from __future__ import annotations

from collections.abc import Sequence

from subsecond.measure.eval_figures import Figures
from subsecond.measure.evaluation_result import (
    EvaluationResult,
    SliceFigures,
    token_text,
    top_texts,
    unique_names,
)
from subsecond.measure.html_page import Page
from subsecond.measure.quality import Estimate
from subsecond.measure.svg_plot import Bar, Series, bar_plot, line_plot, number_text
from subsecond.measure.window_scores import TopTokens
from subsecond.models.tokenizer import Tokenizer

SHOWN_CONTEXT_CHARS = 90


def evaluation_page(result: EvaluationResult, tokenizer: Tokenizer) -> Page:
    """The report of a result; `tokenizer` turns the tokens of the model into text."""
    page = Page(f"Quality of {result.subject.model}")
    _summary(page, result)
    if result.windows:
        _texts(page, result)
    _tasks(page, result)
    if result.subject.reference is not None and result.windows:
        _worst(page, result, tokenizer)
    page.heading("How it was measured")
    machine = [[name, str(value)] for name, value in result.subject.machine.items()]
    page.table([["machine", ""], *machine])
    page.paragraph(
        "Intervals are 95 % percentile bootstrap intervals over windows or questions, paired: one resampling serves "
        "the model and its reference. With one window or question the interval is the figure itself and says nothing. "
        "KL is that of the model from the reference, in nats a token. The reference is the fp32 graph of the original "
        "weights, dequantized, by the torch backend."
    )
    return page


def _summary(page: Page, result: EvaluationResult) -> None:
    subject = result.subject
    page.paragraph(
        f"{subject.model}, served as {subject.variant}; reference: {subject.reference or 'none'}. "
        f"{len(result.windows)} windows with {result.num_tokens} scored tokens, "
        f"{sum(len(task.items) for task in result.tasks)} questions."
    )
    for sentence in result.findings:
        page.paragraph(sentence, is_warning=True)
    rows = _interval_rows(result.figures)
    if rows:
        page.table([["figure", "value", "low", "high"], *rows])


def _texts(page: Page, result: EvaluationResult) -> None:
    has_reference = result.subject.reference is not None
    for kind, figures in result.slices.items():
        page.heading(f"By {kind}")
        names = ("kl_mean", "top1_agreement", "perplexity_ratio") if has_reference else ("perplexity",)
        for name, unit in zip(names, ("nats", "agree", "times") if has_reference else ("perplexity",), strict=True):
            page.paragraph(name)
            page.plot(bar_plot(_bars({label: each[name] for label, each in figures.items()}), unit))
    page.heading("By window")
    if has_reference:
        rows = [each.against_reference for each in result.scores]
        points = [(float(index), float(each.kl.mean())) for index, each in enumerate(rows) if each is not None]
        page.plot(line_plot([Series("mean KL", points, is_line=False)], "window", "mean KL, nats"))
    else:
        points = [(float(index), float(each.nll.mean())) for index, each in enumerate(result.scores)]
        page.plot(line_plot([Series("mean nll", points, is_line=False)], "window", "nats a token"))


def _tasks(page: Page, result: EvaluationResult) -> None:
    names = unique_names([task.name for task in result.tasks])
    for name, task, figures, slices in zip(names, result.tasks, result.task_figures, result.task_slices, strict=True):
        page.heading(f"Task {name}")
        page.paragraph(f"{task.kind}, {len(task.items)} questions")
        page.table([["figure", "value", "low", "high"], *_interval_rows(figures)])
        _task_slices(page, slices)


def _task_slices(page: Page, slices: SliceFigures) -> None:
    for kind, groups in slices.items():
        first = next(iter(next(iter(groups.values()))))
        page.paragraph(f"{first} by {kind}")
        page.plot(bar_plot(_bars({label: each[first] for label, each in groups.items()}), ""))


def _worst(page: Page, result: EvaluationResult, tokenizer: Tokenizer) -> None:
    page.heading("Tokens that differ most")
    rows = [["KL, nats", "text", "before", "followed by", "reference expects", "model expects"]]
    for each, token in result.worst():
        context = tokenizer.decode(token.context_ids, skip_special=False)[-SHOWN_CONTEXT_CHARS:]
        rows.append(
            [
                number_text(token.kl),
                each.text.name,
                repr(context)[1:-1],
                repr(token_text(token.target_id, tokenizer)),
                _tops_text(token.reference_top, tokenizer),
                _tops_text(token.candidate_top, tokenizer),
            ]
        )
    page.table(rows)


def _tops_text(tokens: TopTokens, tokenizer: Tokenizer) -> str:
    return ", ".join(f"{text!r} {share:.0%}" for text, share in top_texts(tokens, tokenizer))


def _interval_rows(figures: Figures) -> list[Sequence[str]]:
    measured = [(name, each) for name, each in figures.items() if each is not None]
    return [[name, *(number_text(value) for value in (each.value, each.low, each.high))] for name, each in measured]


def _bars(figures: dict[str, Estimate | None]) -> list[Bar]:
    return [Bar(label, each.value, each.low, each.high) for label, each in figures.items() if each is not None]
