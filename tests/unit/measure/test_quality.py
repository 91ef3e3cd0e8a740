"""Windows, scoring and reports on cases small enough to compute by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest

from subsecond.backends.batch import Float32, Int32
from subsecond.core.errors import InputError
from subsecond.measure.evaluation import evaluate, evaluate_all
from subsecond.measure.quality import RowQuality, compare_logits, summarize
from subsecond.measure.windows import windows_of_text


def logits_of(probabilities: list[list[float]]) -> Float32:
    logits: Float32 = np.log(np.array(probabilities)).astype(np.float32)
    return logits


def ids(*tokens: int) -> Int32:
    return np.array(tokens, dtype=np.int32)


def random_logits(rows: int, vocab: int, seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal((rows, vocab)).astype(np.float32) * 4


def test_kl_and_likelihoods_of_a_row_by_hand() -> None:
    reference, candidate = logits_of([[0.5, 0.25, 0.25]]), logits_of([[0.25, 0.5, 0.25]])
    rows = compare_logits(reference, candidate, ids(1))
    assert rows.kl[0] == pytest.approx(0.25 * math.log(2), abs=1e-7)
    assert rows.nll_reference[0] == pytest.approx(math.log(4), abs=1e-6)
    assert rows.nll[0] == pytest.approx(math.log(2), abs=1e-6)
    assert not rows.is_top1_equal[0]


def test_kl_is_of_the_candidate_from_the_reference_and_not_the_reverse() -> None:
    reference, candidate = logits_of([[0.9, 0.1]]), logits_of([[0.5, 0.5]])
    forward = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert compare_logits(reference, candidate, ids(0)).kl[0] == pytest.approx(forward, abs=1e-7)


def test_identical_logits_have_no_divergence() -> None:
    logits = random_logits(70, 301, seed=0)
    rows = compare_logits(logits, logits.copy(), np.zeros(70, dtype=np.int32))
    assert (rows.kl == 0).all()
    assert rows.is_top1_equal.all()
    np.testing.assert_array_equal(rows.nll, rows.nll_reference)


def test_a_constant_added_to_a_row_changes_nothing_even_when_large() -> None:
    logits = random_logits(3, 40, seed=1)
    rows = compare_logits(logits, logits + np.float32(1024), ids(0, 1, 2))
    np.testing.assert_allclose(rows.kl, 0, atol=1e-3)
    np.testing.assert_allclose(rows.nll, rows.nll_reference, atol=1e-3)


@pytest.mark.parametrize("num_rows", [1, 16, 17, 33])
def test_every_row_matches_a_plain_float64_computation(num_rows: int) -> None:
    reference = random_logits(num_rows, 500, seed=2)
    candidate = reference + random_logits(num_rows, 500, seed=3) * np.float32(0.01)
    targets = np.arange(num_rows, dtype=np.int32)
    wide_r, wide_c = reference.astype(np.float64), candidate.astype(np.float64)
    log_r = wide_r - np.log(np.exp(wide_r).sum(axis=1, keepdims=True))
    log_c = wide_c - np.log(np.exp(wide_c).sum(axis=1, keepdims=True))
    rows = compare_logits(reference, candidate, targets)
    np.testing.assert_allclose(rows.kl, (np.exp(log_r) * (log_r - log_c)).sum(axis=1), atol=2e-7)
    np.testing.assert_allclose(rows.nll, -log_c[np.arange(num_rows), targets], atol=1e-6)
    np.testing.assert_array_equal(rows.is_top1_equal, log_r.argmax(axis=1) == log_c.argmax(axis=1))


def test_logits_that_cannot_be_compared_are_refused() -> None:
    logits = random_logits(2, 8, seed=4)
    broken = logits.copy()
    broken[1, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        compare_logits(logits, broken, ids(0, 1))
    with pytest.raises(InputError, match="same vocabulary"):
        compare_logits(logits, logits[:, :7], ids(0, 1))
    with pytest.raises(InputError, match="vocabulary has 8"):
        compare_logits(logits, logits, ids(0, 8))


def test_perplexity_of_uniform_logits_is_the_vocabulary_size() -> None:
    windows = np.arange(12, dtype=np.int32).reshape(3, 4)
    report = evaluate([np.zeros((4, 12), np.float32)] * 3, [np.ones((4, 12), np.float32)] * 3, windows)
    assert (report.num_windows, report.num_tokens) == (3, 9)
    assert report.perplexity.value == pytest.approx(12)
    assert report.perplexity_reference.value == pytest.approx(12)
    assert report.perplexity_ratio.value == pytest.approx(1)


def test_each_position_predicts_the_next_token_and_the_last_one_nothing() -> None:
    windows = np.array([[2, 0, 1]], dtype=np.int32)
    sure = np.full((3, 3), -50, dtype=np.float32)
    sure[0, 0] = sure[1, 1] = 50  # after 2 comes 0, after 0 comes 1; the last row is wrong on purpose
    report = evaluate([sure], [sure], windows)
    assert report.perplexity.value == pytest.approx(1)
    assert report.num_tokens == 2


def test_figures_of_a_report_by_hand() -> None:
    def window(kl: list[float], agree: list[bool], nll: float) -> RowQuality:
        return RowQuality(np.array(kl), np.array(agree), np.full(len(kl), 1.0), np.full(len(kl), nll))

    report = summarize([window([0.0, 0.1], [True, True], 1.0), window([0.2, 0.5], [False, True], 2.0)])
    assert report.mean_kl.value == pytest.approx(0.2)
    assert report.median_kl.value == pytest.approx(0.15)
    assert report.p99_kl.value == pytest.approx(0.2 + 0.3 * 0.97)
    assert report.top1_agreement.value == pytest.approx(0.75)
    assert report.perplexity.value == pytest.approx(math.exp(1.5))
    assert report.perplexity_ratio.value == pytest.approx(math.exp(0.5))
    assert report.mean_kl.low == pytest.approx(0.05)
    assert report.mean_kl.high == pytest.approx(0.35)


def test_intervals_are_repeatable_and_the_ratio_is_sharper_than_the_perplexities() -> None:
    rng = np.random.default_rng(5)
    windows = []
    for _ in range(20):
        nll = rng.normal(3, 1) + rng.normal(0, 0.1, size=30)
        kl, agree = rng.exponential(0.001, size=30), rng.random(30) > 0.02
        windows.append(RowQuality(kl, agree, nll, nll + rng.normal(0, 0.001, size=30)))
    first = summarize(windows)
    assert first == summarize(windows)
    assert first.mean_kl.low < first.mean_kl.value < first.mean_kl.high
    ratio_width = first.perplexity_ratio.high - first.perplexity_ratio.low
    assert ratio_width < 0.01 < first.perplexity.high / first.perplexity.low - 1
    assert json.loads(json.dumps(first.to_json()))["num_tokens"] == 600


def test_the_reference_is_computed_once_for_all_candidates_and_progress_is_told() -> None:
    asked: list[int] = []

    def stream(scale: float, log: list[int] | None = None) -> Iterator[Float32]:
        for index in range(3):
            if log is not None:
                log.append(index)
            yield random_logits(5, 9, seed=index) * np.float32(scale)

    windows = np.arange(15, dtype=np.int32).reshape(3, 5) % 9
    told: list[tuple[int, int]] = []
    candidates = {"same": stream(1.0), "flat": stream(0.5)}
    reports = evaluate_all(candidates, stream(1.0, asked), windows, lambda done, total: told.append((done, total)))
    assert asked == [0, 1, 2]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert reports["same"].mean_kl.value == 0 < reports["flat"].mean_kl.value
    assert reports["flat"].top1_agreement.value == 1


def test_a_source_that_ends_early_is_named() -> None:
    windows = np.zeros((2, 3), dtype=np.int32)
    logits = np.zeros((3, 4), dtype=np.float32)
    with pytest.raises(InputError, match="candidate gave the logits of 1 windows; 2"):
        evaluate([logits], [logits] * 2, windows)


def test_windows_are_the_first_tokens_in_order() -> None:
    windows = windows_of_text("abcdefg", lambda text: [ord(char) for char in text], 2, 3)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows, [[97, 98, 99], [100, 101, 102]])


def test_a_short_text_says_how_many_windows_fit() -> None:
    with pytest.raises(InputError, match="7 tokens, but 3 windows of 3 need 9; ask for at most 2"):
        windows_of_text("abcdefg", lambda text: list(range(len(text))), 3, 3)
    with pytest.raises(InputError, match="at least 2"):
        windows_of_text("abcdefg", lambda text: list(range(len(text))), 3, 1)
