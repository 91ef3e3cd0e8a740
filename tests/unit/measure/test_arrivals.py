"""Requests come when they are said to."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from subsecond.core.errors import FormatError, InputError, SubsecondError
from subsecond.measure.arrivals import poisson, read_arrivals


def test_random_times_have_their_rate_and_repeat_with_their_seed() -> None:
    found = poisson(20.0, 4000, 3)
    times = found.times_s
    assert times[0] == 0 and list(times) == sorted(times)
    assert 3999 / times[-1] == pytest.approx(20.0, rel=0.06)
    gaps = [after - before for before, after in pairwise(times)]
    # the standard deviation of exponential gaps is their mean
    mean = sum(gaps) / len(gaps)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.1)
    assert poisson(20.0, 4000, 3) == found != poisson(20.0, 4000, 4)


def test_times_of_a_file_count_from_its_first(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.jsonl"
    path.write_text('{"at_s": 2}\n\n{"at_s": 2.5, "prompt_tokens": 7}\n{"at_s": 4, "output_tokens": 3, "more": 1}\n')
    found = read_arrivals(path)
    assert found.times_s == (0.0, 0.5, 2.0)
    assert found.lengths == ((None, None), (7, None), (None, 3))
    assert read_arrivals(path, 2).times_s == (0.0, 0.5)
    assert read_arrivals(path, 1).lengths == ()


def test_published_traces_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 500, "input_length": 60, "output_length": 5, "hash_ids": [1, 2]}\n')
    found = read_arrivals(path)
    assert found.times_s == (0.0,) and found.lengths == ((60, 5),)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, InputError, "there is no file"),
        ("\n", InputError, "has no line"),
        ("7\n", FormatError, ":1: is '7"),
        ('{"at_s": "soon"}\n', FormatError, "needs `at_s`"),
        ('{"at_s": 1e400}\n', FormatError, "needs `at_s`"),
        ('{"at_s": true}\n', FormatError, "needs `at_s`"),
        ('{"at_s": 3}\n{"at_s": 2}\n', FormatError, ":2: at 2 s, after one at 3 s"),
        ('{"at_s": 0, "prompt_tokens": 0}\n', FormatError, "prompt_tokens must be a whole number from 1"),
        ('{"at_s": 0, "output_length": 1e9}\n', FormatError, "output_tokens must be a whole number from 1"),
    ],
)
def test_what_is_no_list_of_arrivals_is_refused(
    tmp_path: Path, content: str | None, error: type[SubsecondError], message: str
) -> None:
    path = tmp_path / "arrivals.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        read_arrivals(path)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="give a number above 0"):
        poisson(rate, 2, 0)
