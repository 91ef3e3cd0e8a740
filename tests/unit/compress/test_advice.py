from __future__ import annotations

import pytest

from subsecond.compress.advice import advise
from subsecond.core.errors import InputError


def test_bytes_say_where_sparse_weights_win() -> None:
    advice = advise(0.5)
    by_format = {each.format: each for each in advice.comparisons}
    # 1/8 + 2 density bytes a weight against 1 and 4.125 / 8
    assert by_format["int8"].ratio == pytest.approx(1 / 1.125)
    assert by_format["int8"].needed_density == pytest.approx(0.4375)
    assert by_format["int4"].ratio == pytest.approx(0.515625 / 1.125)
    assert by_format["int4"].needed_density == pytest.approx(0.1953125)
    assert advice.basis == "bytes"
    first, second = advice.sentences()
    assert "slower than int8, at 0.89 of its speed" in first and "below a density of 44%" in first
    assert "expected from the bytes" in second
    assert all(each.ratio > 1 for each in advise(0.1).comparisons)
    assert "1.59 times as fast as int4" in advise(0.1).sentences()[1]


def test_measured_times_decide_where_there_are_some() -> None:
    sparse = {0.1: 3.0, 0.2: 4.0, 0.5: 10.0}
    advice = advise(0.2, sparse_seconds=sparse, other_seconds={"int8": 7.0, "int4": 3.5})
    by_format = {each.format: each for each in advice.comparisons}
    assert by_format["int8"].ratio == pytest.approx(7 / 4)
    assert by_format["int8"].needed_density == pytest.approx(0.35)
    assert by_format["int4"].needed_density == pytest.approx(0.15)
    assert "measured here" in advice.sentences()[0]
    between = advise(0.35, sparse_seconds=sparse, other_seconds={"int8": 7.0})
    assert between.comparisons[0].ratio == pytest.approx(1.0)
    beyond = advise(0.05, sparse_seconds=sparse, other_seconds={"int8": 7.0})
    assert beyond.comparisons[0].ratio == pytest.approx(7 / 2.5)


def test_no_density_or_every_density_may_be_needed() -> None:
    sparse = {0.1: 3.0, 0.5: 5.0}
    never, always = advise(0.1, sparse_seconds=sparse, other_seconds={"int4": 2.4, "int8": 9.0}).comparisons
    assert never.needed_density is None and always.needed_density == 1.0
    advice = advise(0.1, sparse_seconds=sparse, other_seconds={"int4": 2.4})
    assert "no density makes them faster" in advice.sentences()[0]


def test_times_that_jitter_do_not_turn_the_order_round() -> None:
    sparse = {0.1: 3.0, 0.2: 2.9, 0.5: 6.0}
    found = advise(0.2, sparse_seconds=sparse, other_seconds={"int8": 3.0}).comparisons[0]
    assert found.ratio == pytest.approx(1.0) and found.needed_density == pytest.approx(0.2)


def test_bad_times_are_refused() -> None:
    with pytest.raises(InputError, match="density"):
        advise(1.5)
    with pytest.raises(InputError, match="both or none"):
        advise(0.5, sparse_seconds={0.1: 1.0, 0.5: 2.0})
    with pytest.raises(InputError, match="positive"):
        advise(0.5, sparse_seconds={0.1: 1.0}, other_seconds={"int8": 1.0})
    with pytest.raises(InputError, match="positive"):
        advise(0.5, sparse_seconds={0.1: 1.0, 0.5: 2.0}, other_seconds={"int8": float("nan")})
