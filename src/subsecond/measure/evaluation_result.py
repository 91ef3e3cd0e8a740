"""The result of an evaluation as JSON data and as lines to read; runs and draws nothing."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from subsecond.measure.eval_figures import (
    Answer,
    Figures,
    by_slice,
    findings_of,
    task_figures,
    text_figures,
)
from subsecond.measure.evaluation_run import TextWindow
from subsecond.measure.svg_plot import number_text
from subsecond.measure.tasks import Task
from subsecond.measure.text_files import SLICES
from subsecond.measure.window_scores import TokenDivergence, TopTokens, WindowScores
from subsecond.models.tokenizer import Tokenizer

NUM_WORST = 20

SliceFigures = dict[str, dict[str, Figures]]


@dataclass(frozen=True, slots=True)
class Subject:
    """What was evaluated: names for people, what decides the bits, where it ran, what to run for an explanation."""

    model: str
    variant: str
    reference: str | None
    machine: Mapping[str, Any]
    explain_command: str


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of windows and answers to tasks, with the figures that follow from them; these are computed once."""

    subject: Subject
    windows: Sequence[TextWindow]
    scores: Sequence[WindowScores]
    tasks: Sequence[Task]
    answers: Sequence[Sequence[Answer]]

    @property
    def num_tokens(self) -> int:
        """Scored tokens of all windows."""
        return sum(len(scores.nll) for scores in self.scores)

    @cached_property
    def figures(self) -> Figures:
        """The figures over all windows."""
        return text_figures(self.scores)

    @cached_property
    def slices(self) -> SliceFigures:
        """The figures by domain, by language and by text, where there are several texts."""
        found = {name: self._by([getattr(each.text, name) for each in self.windows]) for name in SLICES}
        names = [each.text.name for each in self.windows]
        if len(set(names)) > 1:
            found["text"] = self._by(names)
        return {name: figures for name, figures in found.items() if figures}

    @cached_property
    def task_figures(self) -> list[Figures]:
        """The figures of each task."""
        pairs = zip(self.tasks, self.answers, strict=True)
        return [task_figures(task, answers) for task, answers in pairs]

    @cached_property
    def task_slices(self) -> list[SliceFigures]:
        """The figures of each task by domain and by language."""
        return [_task_slices(task, answers) for task, answers in zip(self.tasks, self.answers, strict=True)]

    @cached_property
    def findings(self) -> list[str]:
        """What is clearly broken, in sentences."""
        return findings_of(self.figures, self.subject.explain_command)

    def worst(self) -> list[tuple[TextWindow, TokenDivergence]]:
        """The tokens with the largest divergence of all windows, the largest first."""
        pairs = [(each, token) for each, found in zip(self.windows, self.scores, strict=True) for token in found.worst]
        return heapq.nlargest(NUM_WORST, pairs, key=lambda pair: pair[1].kl)

    def to_json(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The object that `eval --json` prints; each figure is {value, low, high}, or null where not measured."""
        subject = self.subject
        tasks = {}
        names = unique_names([task.name for task in self.tasks])
        for name, task, figures, slices in zip(names, self.tasks, self.task_figures, self.task_slices, strict=True):
            tasks[name] = {"kind": task.kind, "num_items": len(task.items), **figures_json(figures)}
            tasks[name]["slices"] = _slices_json(slices)
        return {
            "machine": dict(subject.machine),
            "model": subject.model,
            "variant": subject.variant,
            "reference": subject.reference,
            **figures_json(self.figures),
            "tasks": tasks,
            "slices": _slices_json(self.slices),
            "num_windows": len(self.windows),
            "num_tokens": self.num_tokens,
            "findings": self.findings,
            "worst_tokens": [_worst_json(each, token, tokenizer) for each, token in self.worst()],
        }

    def rows(self) -> list[tuple[str, str]]:
        """Names and values of all figures that were measured, for people."""
        subject = self.subject
        rows = [("model", f"{subject.model} ({subject.variant})"), ("reference", subject.reference or "none")]
        if self.windows:
            rows.append(("text", f"{len(self.windows)} windows, {self.num_tokens} scored tokens"))
        rows += figure_rows(self.figures)
        for kind, figures in self.slices.items():
            if kind != "text":
                rows += [row for name, each in figures.items() for row in _slice_rows(f"{kind} {name}", each)]
        names = unique_names([task.name for task in self.tasks])
        for name, task, each in zip(names, self.tasks, self.task_figures, strict=True):
            rows.append((f"task {name}", f"{task.kind}, {len(task.items)} items"))
            rows += [(f"  {figure}", text) for figure, text in figure_rows(each)]
        return rows

    def _by(self, labels: Sequence[str | None]) -> dict[str, Figures]:
        return by_slice(labels, self.scores, text_figures)


def figures_json(figures: Figures) -> dict[str, dict[str, float] | None]:
    """Each figure as {value, low, high}, or None."""
    return {name: None if each is None else each.to_json() for name, each in figures.items()}


def figure_rows(figures: Figures) -> list[tuple[str, str]]:
    """Names and texts of the figures that were measured, with their intervals."""
    return [
        (name, f"{number_text(each.value)}  ({number_text(each.low)} to {number_text(each.high)})")
        for name, each in figures.items()
        if each is not None
    ]


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, of which those that were there before get a number."""
    found: list[str] = []
    for name in names:
        count = 1
        unique = name
        while unique in found:
            count += 1
            unique = f"{name}-{count}"
        found.append(unique)
    return found


def top_texts(tokens: TopTokens, tokenizer: Tokenizer) -> list[tuple[str, float]]:
    """Text and probability of likely tokens."""
    return [(token_text(token_id, tokenizer), share) for token_id, share in tokens]


def token_text(token_id: int, tokenizer: Tokenizer) -> str:
    """What a token stands for; padding of the vocabulary has a number only."""
    if token_id >= tokenizer.vocab_size:
        return f"<{token_id}>"
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _worst_json(each: TextWindow, token: TokenDivergence, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "kl": token.kl,
        "text": each.text.name,
        "context": tokenizer.decode(token.context_ids, skip_special=False),
        "followed_by": token_text(token.target_id, tokenizer),
        "reference_top": [list(pair) for pair in top_texts(token.reference_top, tokenizer)],
        "candidate_top": [list(pair) for pair in top_texts(token.candidate_top, tokenizer)],
    }


def _task_slices(task: Task, answers: Sequence[Answer]) -> SliceFigures:
    found: SliceFigures = {}
    for kind in SLICES:
        labels = [getattr(item, kind) for item in task.items]

        def figures(indices: Sequence[int]) -> Figures:
            part = Task(task.name, task.kind, tuple(task.items[index] for index in indices))
            return task_figures(part, [answers[index] for index in indices])

        slices = by_slice(labels, range(len(task.items)), figures)
        if slices:
            found[kind] = slices
    return found


def _slices_json(slices: SliceFigures) -> dict[str, Any]:
    return {
        kind: {label: figures_json(figures) for label, figures in groups.items()} for kind, groups in slices.items()
    }


def _slice_rows(name: str, figures: Figures) -> list[tuple[str, str]]:
    """The figure that tells most of a slice: the divergence, or without a reference the perplexity."""
    shown = "kl_mean" if figures["kl_mean"] is not None else "perplexity"
    return [(f"{shown}, {name}", text) for _, text in figure_rows({shown: figures[shown]})]
