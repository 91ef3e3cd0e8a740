"""Figures, intervals and findings against an independent computation in float64, and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond.measure.eval_figures import (
    TEXT_FIGURES,
    Choices,
    Figures,
    FreeAnswer,
    by_slice,
    findings_of,
    task_figures,
    text_figures,
)
from subsecond.measure.quality import Estimate, RowQuality, compare_logits, token_nll
from subsecond.measure.tasks import Item, Task
from subsecond.measure.window_scores import WindowScores

SEED, NUM_RESAMPLES = 20240229, 1000
RELATIVE = 1e-5
Float64 = NDArray[np.float64]


def random_window(rng: np.random.Generator, rows: int, noise: float) -> tuple[WindowScores, list[dict[str, float]]]:
    """A window of random logits, and the figures of each row computed one by one with Python's own numbers."""
    reference = (rng.standard_normal((rows, 300)) * 4).astype(np.float32)
    candidate = (reference + rng.standard_normal((rows, 300)) * noise).astype(np.float32)
    targets = rng.integers(0, 300, rows).astype(np.int32)
    quality = compare_logits(reference, candidate, targets)
    plain = []
    for ref, cand, target in zip(reference.tolist(), candidate.tolist(), targets.tolist(), strict=True):
        log_ref, log_cand = log_softmax(ref), log_softmax(cand)
        kl = math.fsum(math.exp(p) * (p - q) for p, q in zip(log_ref, log_cand, strict=True))
        same = log_ref.index(max(log_ref)) == log_cand.index(max(log_cand))
        plain.append({"kl": kl, "same": float(same), "ref": -log_ref[target], "cand": -log_cand[target]})
    return WindowScores(quality.nll, quality, ()), plain


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(math.fsum(math.exp(value - top) for value in logits))
    return [value - total for value in logits]


def plain_figures(windows: Sequence[list[dict[str, float]]]) -> dict[str, float]:
    rows = [row for window in windows for row in window]
    mean = {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
    ordered = sorted(row["kl"] for row in rows)
    return {
        "perplexity": math.exp(mean["cand"]),
        "perplexity_reference": math.exp(mean["ref"]),
        "perplexity_ratio": math.exp(mean["cand"] - mean["ref"]),
        "kl_mean": mean["kl"],
        "kl_median": quantile(ordered, 0.5),
        "kl_p99": quantile(ordered, 0.99),
        "top1_agreement": mean["same"],
    }


def quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@pytest.mark.parametrize("noise", [1.0, 0.03, 0.001])
def test_figures_and_intervals_agree_with_plain_float64(noise: float) -> None:
    rng = np.random.default_rng(11)
    # windows of different lengths, as texts end somewhere
    pairs = [random_window(rng, rows, noise) for rows in (12, 7, 12, 3, 12)]
    found = text_figures([scores for scores, _ in pairs])
    plain = [rows for _, rows in pairs]
    values = plain_figures(plain)
    draws = np.random.default_rng(SEED)
    resampled = [plain_figures([plain[i] for i in draws.integers(5, size=5)]) for _ in range(NUM_RESAMPLES)]
    for name in TEXT_FIGURES:
        estimate = found[name]
        assert estimate is not None
        spread = sorted(each[name] for each in resampled)
        assert estimate.value == pytest.approx(values[name], rel=RELATIVE), name
        assert estimate.low == pytest.approx(quantile(spread, 0.025), rel=RELATIVE), name
        assert estimate.high == pytest.approx(quantile(spread, 0.975), rel=RELATIVE), name


def test_without_a_reference_there_is_perplexity_only() -> None:
    rng = np.random.default_rng(2)
    logits = (rng.standard_normal((20, 60)) * 3).astype(np.float32)
    targets = rng.integers(0, 60, 20).astype(np.int32)
    nll = token_nll(logits, targets)
    for row, target, value in zip(logits.tolist(), targets.tolist(), nll.tolist(), strict=True):
        assert value == pytest.approx(-log_softmax(row)[target], rel=1e-12)
    found = text_figures([WindowScores(nll[:5], None, ()), WindowScores(nll[5:], None, ())])
    assert found.pop("perplexity").value == pytest.approx(math.exp(nll.mean()))  # type: ignore[union-attr]
    assert list(found.values()) == [None] * (len(TEXT_FIGURES) - 1)
    assert set(text_figures([]).values()) == {None}


def choices_task(*answers: int) -> Task:
    items = tuple(Item("q", (" a", " bbbb"), answer, (), None, None) for answer in answers)
    return Task("t", "multiple choice", items)


def test_figures_of_multiple_choice_by_hand() -> None:
    # the second choice is four times as long: -4 in all is -1 a character
    answers = [
        Choices((-2.0, -4.0), (-2.0, -9.0)),
        Choices((-2.0, -4.0), (-3.0, -1.0)),
        Choices((-1.0, -9.0), (-1.0, -9.0)),
        Choices((-9.0, -1.0), (-1.0, -9.0)),
    ]
    found = task_figures(choices_task(0, 0, 0, 1), answers)
    values = {name: None if each is None else each.value for name, each in found.items()}
    assert values == {
        "accuracy": 1.0,
        "accuracy_norm": 0.5,
        "accuracy_reference": 0.5,
        "accuracy_norm_reference": 0.5,
        "flip_rate": 0.5,
    }
    flips = found["flip_rate"]
    assert flips is not None and 0 <= flips.low < 0.5 < flips.high <= 1
    alone = task_figures(choices_task(0), [Choices((-1.0, -9.0), None)])
    assert alone["accuracy"] == Estimate(1.0, 1.0, 1.0)
    assert alone["accuracy_reference"] is alone["flip_rate"] is None


def test_figures_of_classification_and_free_answers_by_hand() -> None:
    labels = Task("t", "classification", choices_task(1, 0).items)
    found = task_figures(labels, [Choices((-2.0, -1.0), (-2.0, -1.0)), Choices((-2.0, -1.0), (-1.0, -2.0))])
    assert {name: each.value for name, each in found.items() if each} == {
        "accuracy": 0.5,
        "accuracy_reference": 1.0,
        "flip_rate": 0.5,
    }
    free = Task("t", "generation", tuple(Item("q", (), -1, ("Rome",), None, None) for _ in range(2)))
    found = task_figures(free, [FreeAnswer("rome!", "Rome"), FreeAnswer("It is Rome", "Paris")])
    assert {name: each.value for name, each in found.items() if each} == {
        "exact_match": 0.5,
        "contains": 1.0,
        "exact_match_reference": 0.5,
        "contains_reference": 0.5,
        "flip_rate": 0.5,
    }


def test_slices_hold_what_has_their_label() -> None:
    def total(values: Sequence[int]) -> Figures:
        return {"sum": Estimate(sum(values), 0, 0)}

    found = by_slice(["b", None, "a", "b"], [1, 2, 4, 8], total)
    assert list(found) == ["a", "b"]
    assert [each["sum"].value for each in found.values() if each["sum"]] == [4, 9]


def scores_of(kl: float, agree: float, ratio: float, num_windows: int = 4) -> list[WindowScores]:
    """Windows with exactly these figures."""
    same = np.arange(100) < agree * 100
    quality = RowQuality(np.full(100, kl), same, np.full(100, 2.0), np.full(100, 2.0 + math.log(ratio)))
    return [WindowScores(quality.nll, quality, ())] * num_windows


@pytest.mark.parametrize(
    ("kl", "agree", "ratio", "words"),
    [
        (0.003, 0.97, 1.001, []),
        (0.49, 0.71, 1.49, []),
        (0.6, 0.9, 1.1, ["mean KL 0.6 nats"]),
        (0.1, 0.5, 1.1, ["top-1 agreement 50.0%"]),
        (0.1, 0.9, 2.0, ["perplexity 2 times as high"]),
        (3.0, 0.1, 90.0, ["mean KL", "top-1", "perplexity"]),
    ],
)
def test_findings_name_what_is_broken_and_how_to_see_where(
    kl: float, agree: float, ratio: float, words: list[str]
) -> None:
    found = findings_of(text_figures(scores_of(kl, agree, ratio)), "subsecond explain m.gguf --reference r.gguf")
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence and "subsecond explain m.gguf" in sentence


def test_a_figure_whose_interval_reaches_a_sound_value_is_no_finding() -> None:
    scores = [*scores_of(0.0, 1.0, 1.0, 3), *scores_of(3.0, 0.1, 9.0, 1)]
    figures = text_figures(scores)
    assert figures["kl_mean"] is not None and figures["kl_mean"].value > 0.5 > figures["kl_mean"].low
    assert findings_of(figures, "x") == []
    assert findings_of(text_figures([]), "x") == []
