"""The difference of two artifacts is sharper than either figure where windows differ more than they do."""

from __future__ import annotations

import numpy as np

from bench.artifacts import paired_difference
from subsecond.measure.quality import RowQuality


def rows(kl: np.ndarray) -> RowQuality:
    return RowQuality(kl, np.ones(len(kl), np.bool_), np.zeros(len(kl)), np.zeros(len(kl)))


def test_windows_are_paired_and_tokens_count_alike() -> None:
    rng = np.random.default_rng(0)
    hard = [np.full(size, scale) for size, scale in zip((10, 30, 20, 40) * 4, rng.uniform(0.1, 2.0, 16), strict=True)]
    first = [rows(each) for each in hard]
    second = [rows(0.9 * each) for each in hard]
    found = paired_difference(first, second)
    every = np.concatenate(hard)
    assert abs(found.value + 0.1 * every.mean()) < 1e-12
    assert found.low < found.value < found.high < 0
    assert paired_difference(first, first).value == 0
