"""Sampling settings and requests: what is allowed, and that nothing else gets in."""

from __future__ import annotations

from typing import Any

import pytest

from subsecond.core.errors import InputError
from subsecond.engine.request import Request, SamplingParams


def test_defaults_take_the_most_likely_token() -> None:
    params = SamplingParams()
    assert (params.temperature, params.has_penalties, params.max_tokens, params.seed) == (0.0, False, None, None)


def test_one_stop_text_may_stand_alone() -> None:
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"top_p": 0},
        {"min_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"presence_penalty": 3},
        {"frequency_penalty": -3},
        {"logit_bias": {3: 101}},
        {"seed": 2**64},
        {"max_tokens": -1},
        {"num_prompt_logprobs": 21},
        {"stop": [""]},
        {"num_logprobs": 21},
        {"stop_token_ids": [-1]},
    ],
)
def test_values_out_of_range_are_named(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        SamplingParams(**values)


def test_largest_seed_is_allowed_and_kept() -> None:
    assert SamplingParams(seed=2**64 - 1).seed == 2**64 - 1


@pytest.mark.parametrize(
    "values", [{"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": -0.1}]
)
def test_each_penalty_needs_the_history(values: dict[str, Any]) -> None:
    assert SamplingParams(**values).has_penalties


def test_a_request_without_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        Request((), SamplingParams(), "a")
