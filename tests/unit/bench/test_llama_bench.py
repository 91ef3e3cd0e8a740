"""What is said of two sides that were run in turn."""

from __future__ import annotations

import pytest

from bench.llama_bench import FIGURES, summary


def test_the_ratio_is_the_median_of_those_of_the_rounds() -> None:
    theirs = [dict.fromkeys(FIGURES, value) for value in (100.0, 200.0, 50.0)]
    ours = [dict.fromkeys(FIGURES, value) for value in (110.0, 180.0, 50.0)]
    found = summary({"llama-bench": theirs, "bench --against": ours})
    for figure in FIGURES:
        assert found[figure]["ratio"] == pytest.approx(1.0)  # of 1.1, 0.9 and 1.0
        assert found[figure]["llama-bench"] == 100.0 and found[figure]["bench --against"] == 110.0
