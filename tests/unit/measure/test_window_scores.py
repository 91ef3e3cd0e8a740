"""Scores of windows: what is run, what is compared, and that nothing is lost on the way to disk and back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from subsecond.backends.batch import Float32
from subsecond.core.errors import InputError
from subsecond.measure.evaluation import evaluate
from subsecond.measure.window_scores import CONTEXT_TOKENS, NUM_TOP, WindowScores, score_window, scored_logits
from subsecond.measure.windows import Window, sliding_windows
from tests.unit.engine.fake_backend import FakeBackend

IDS = np.random.default_rng(1).integers(0, 50, size=60).astype(np.int32)


def joined(backend: FakeBackend, window: Window, chunk: int) -> Float32:
    parts = [(start, end, logits.copy()) for start, end, logits in scored_logits(backend, window, chunk)]
    assert parts[0][0] == window.first_scored and parts[-1][1] == len(window.token_ids)
    assert all(len(logits) == end - start for start, end, logits in parts)
    return np.concatenate([logits for _, _, logits in parts])


@pytest.mark.parametrize("first_scored", [1, 2, 7, 8, 9, 29])
@pytest.mark.parametrize("chunk", [1, 7, 8, 29, 64])
def test_logits_are_those_that_predict_the_scored_tokens_whatever_the_chunk(first_scored: int, chunk: int) -> None:
    window = Window(IDS[:30], first_scored)
    whole = joined(FakeBackend(), Window(IDS[:30], 1), 64)
    np.testing.assert_array_equal(joined(FakeBackend(), window, chunk), whole[first_scored - 1 :])


def test_figures_are_those_of_the_evaluation_of_whole_windows() -> None:
    class Blurred(FakeBackend):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            return super().forward(batch) * np.float32(0.7)

    windows = sliding_windows(IDS, 20)
    scores = [score_window(Blurred(), FakeBackend(), window) for window in windows]
    report = evaluate(Blurred(), FakeBackend(), IDS.reshape(3, 20))
    kl = np.concatenate([each.against_reference.kl for each in scores if each.against_reference is not None])
    assert kl.mean() == pytest.approx(report.mean_kl.value, rel=1e-12)
    nll = np.concatenate([each.nll for each in scores])
    assert np.exp(nll.mean()) == pytest.approx(report.perplexity.value, rel=1e-12)
    alone = [score_window(Blurred(), None, window) for window in windows]
    np.testing.assert_allclose(np.concatenate([each.nll for each in alone]), nll, rtol=1e-12)
    assert all(each.against_reference is None and each.worst == () for each in alone)


def test_the_tokens_that_differ_most_come_first_with_what_stood_before_them() -> None:
    window = Window(IDS[:40], 1)
    # the same backend with another past at one place: it sees another token there
    scores = score_window(FakeBackend(vocab_size=50), _Shifted(vocab_size=50), window)
    assert scores.against_reference is not None
    kls = [each.kl for each in scores.worst]
    assert kls == sorted(kls, reverse=True)
    at = int(np.argmax(scores.against_reference.kl)) + 1
    worst = scores.worst[0]
    assert worst.kl == scores.against_reference.kl.max() > 0
    assert worst.target_id == IDS[at]
    assert worst.context_ids == tuple(IDS[max(0, at - CONTEXT_TOKENS) : at].tolist())
    shares = [share for _, share in worst.reference_top]
    assert len(shares) == NUM_TOP and shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1
    assert worst.reference_top != worst.candidate_top


class _Shifted(FakeBackend):
    def forward(self, batch):  # type: ignore[no-untyped-def]
        return super().forward(batch)[:, ::-1].copy()


@pytest.mark.parametrize("has_reference", [True, False])
def test_scores_go_to_disk_and_back_without_loss(has_reference: bool) -> None:
    given = score_window(FakeBackend(), _Shifted() if has_reference else None, Window(IDS[:30], 3))
    found = WindowScores.from_json(json.loads(json.dumps(given.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(found.nll, given.nll)
    assert found.worst == given.worst
    assert (found.against_reference is None) is not has_reference
    if found.against_reference is not None and given.against_reference is not None:
        np.testing.assert_array_equal(found.against_reference.kl, given.against_reference.kl)
        np.testing.assert_array_equal(found.against_reference.is_top1_equal, given.against_reference.is_top1_equal)
        np.testing.assert_array_equal(found.against_reference.nll_reference, given.against_reference.nll_reference)


def test_a_window_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="window of 30 tokens does not fit into the key/value memory of 8 tokens"):
        score_window(FakeBackend(num_blocks=2), None, Window(IDS[:30], 1))
