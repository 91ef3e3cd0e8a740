"""From scores of windows and answers to tasks to figures with intervals, whole and by slice, and to findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from subsecond.measure.quality import Estimate, RowQuality, bootstrap, perplexity_of, summarize
from subsecond.measure.tasks import Item, Task, contains_answer, is_exact, normalized
from subsecond.measure.window_scores import WindowScores

MAX_MEAN_KL = 0.5  # nats a token
MIN_TOP1_AGREEMENT = 0.7
MAX_PERPLEXITY_RATIO = 1.5

Figures = dict[str, Estimate | None]
T = TypeVar("T")

TEXT_FIGURES = (
    "perplexity",
    "perplexity_reference",
    "perplexity_ratio",
    "kl_mean",
    "kl_median",
    "kl_p99",
    "top1_agreement",
)


@dataclass(frozen=True, slots=True)
class Choices:
    """Answers to a question with choices: the log-likelihood of each, by the candidate and by the reference."""

    candidate: tuple[float, ...]
    reference: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class FreeAnswer:
    """A free answer of the candidate and of the reference."""

    candidate: str
    reference: str | None


Answer = Choices | FreeAnswer


def text_figures(windows: Sequence[WindowScores]) -> Figures:
    """The figures of `TEXT_FIGURES` over windows, divergences in nats; None for what was not measured."""
    figures: Figures = dict.fromkeys(TEXT_FIGURES)
    rows = [window.against_reference for window in windows]
    compared: list[RowQuality] = [each for each in rows if each is not None]
    if windows and len(compared) == len(windows):
        report = summarize(compared)
        figures |= {
            "perplexity": report.perplexity,
            "perplexity_reference": report.perplexity_reference,
            "perplexity_ratio": report.perplexity_ratio,
            "kl_mean": report.mean_kl,
            "kl_median": report.median_kl,
            "kl_p99": report.p99_kl,
            "top1_agreement": report.top1_agreement,
        }
    elif windows:
        figures["perplexity"] = perplexity_of([window.nll for window in windows])
    return figures


def task_figures(task: Task, answers: Sequence[Answer]) -> Figures:
    """Shares from 0 to 1 over the items of a task; those that need a reference are None without one.

    multiple choice  accuracy (most likely choice), accuracy_norm (most likely a character, as acc_norm of
                     lm-evaluation-harness), both also of the reference; flip_rate: share of items where the two choose
                     differently
    classification   accuracy, accuracy_reference, flip_rate
    generation       exact_match, contains, both also of the reference; flip_rate: share of answers that differ once
                     normalized
    """
    columns = _columns(task, answers)
    names = [name for name, column in columns.items() if column is not None]
    table = np.array([columns[name] for name in names], dtype=np.float64)

    def figures(chosen: NDArray[np.intp]) -> Sequence[float]:
        return [float(value) for value in table[:, chosen].mean(axis=1)]

    found = dict(zip(names, bootstrap(len(answers), figures), strict=True))
    return {name: found.get(name) for name in columns}


def by_slice(
    labels: Sequence[str | None], values: Sequence[T], figures: Callable[[Sequence[T]], Figures]
) -> dict[str, Figures]:
    """The figures of the values under each label, in the order of the labels; empty where nothing has one."""
    groups: dict[str, list[T]] = {}
    for label, value in zip(labels, values, strict=True):
        if label is not None:
            groups.setdefault(label, []).append(value)
    return {label: figures(groups[label]) for label in sorted(groups)}


def findings_of(figures: Mapping[str, Estimate | None], explain_command: str) -> list[str]:
    """Sentences on what is clearly broken: a figure beyond any sound variant's, its whole interval included."""
    found = []
    kl, top1, ratio = (figures[name] for name in ("kl_mean", "top1_agreement", "perplexity_ratio"))
    if kl is not None and kl.low > MAX_MEAN_KL:
        found.append(
            f"the probabilities are far from the reference's: mean KL {kl.value:.3g} nats a token (95 % interval "
            f"{kl.low:.3g} to {kl.high:.3g}; a sound variant stays below {MAX_MEAN_KL})"
        )
    if top1 is not None and top1.high < MIN_TOP1_AGREEMENT:
        found.append(
            f"the most likely token is often another than the reference's: top-1 agreement {top1.value:.1%} (95 % "
            f"interval {top1.low:.1%} to {top1.high:.1%}; a sound variant stays above {MIN_TOP1_AGREEMENT:.0%})"
        )
    if ratio is not None and ratio.low > MAX_PERPLEXITY_RATIO:
        found.append(
            f"the text is much less likely than under the reference: perplexity {ratio.value:.3g} times as high (95 % "
            f"interval {ratio.low:.3g} to {ratio.high:.3g}; a sound variant stays below {MAX_PERPLEXITY_RATIO})"
        )
    advice = (
        "weights or scales of some layer are probably wrong, or too coarse for this model; to see where: "
        f"{explain_command}"
    )
    return [f"{sentence}; {advice}" for sentence in found]


def chosen_index(loglikelihoods: Sequence[float]) -> int:
    """The most likely choice, the first one on a tie."""
    return int(np.argmax(loglikelihoods))


def chosen_index_norm(item: Item, loglikelihoods: Sequence[float]) -> int:
    """The choice that is most likely a character, the space before it not counted."""
    return int(
        np.argmax([value / (len(choice) - 1) for value, choice in zip(loglikelihoods, item.choices, strict=True)])
    )


def _columns(task: Task, answers: Sequence[Answer]) -> dict[str, list[bool] | None]:
    if task.kind == "generation":
        free = [each for each in answers if isinstance(each, FreeAnswer)]
        assert len(free) == len(task.items)
        return _free_columns(task.items, free)
    picked = [each for each in answers if isinstance(each, Choices)]
    assert len(picked) == len(task.items)
    columns = _choice_columns(task.items, picked)
    if task.kind == "classification":
        return {name: column for name, column in columns.items() if "norm" not in name}
    return columns


def _choice_columns(items: Sequence[Item], answers: Sequence[Choices]) -> dict[str, list[bool] | None]:
    pairs = list(zip(items, answers, strict=True))
    columns: dict[str, list[bool] | None] = {
        "accuracy": [chosen_index(given.candidate) == item.answer for item, given in pairs],
        "accuracy_norm": [chosen_index_norm(item, given.candidate) == item.answer for item, given in pairs],
        "accuracy_reference": None,
        "accuracy_norm_reference": None,
        "flip_rate": None,
    }
    references = [(item, given.candidate, given.reference) for item, given in pairs if given.reference is not None]
    if len(references) == len(pairs):
        columns["accuracy_reference"] = [chosen_index(values) == item.answer for item, _, values in references]
        columns["accuracy_norm_reference"] = [
            chosen_index_norm(item, values) == item.answer for item, _, values in references
        ]
        columns["flip_rate"] = [chosen_index(given) != chosen_index(values) for _, given, values in references]
    return columns


def _free_columns(items: Sequence[Item], answers: Sequence[FreeAnswer]) -> dict[str, list[bool] | None]:
    pairs = list(zip(items, answers, strict=True))
    columns: dict[str, list[bool] | None] = {
        "exact_match": [is_exact(given.candidate, item.expected) for item, given in pairs],
        "contains": [contains_answer(given.candidate, item.expected) for item, given in pairs],
        "exact_match_reference": None,
        "contains_reference": None,
        "flip_rate": None,
    }
    references = [(item, given.candidate, given.reference) for item, given in pairs if given.reference is not None]
    if len(references) == len(pairs):
        columns["exact_match_reference"] = [is_exact(text, item.expected) for item, _, text in references]
        columns["contains_reference"] = [contains_answer(text, item.expected) for item, _, text in references]
        columns["flip_rate"] = [normalized(given) != normalized(text) for _, given, text in references]
    return columns
